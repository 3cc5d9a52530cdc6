"""The composition root: every object is made here, once, and given what it uses.

Owns: the order of coming up and going down. Must not: hold logic of its own.

Shutdown is nesting: what is entered last is left first. SIGTERM: health says
NOT_SERVING, new calls are refused, those in flight finish, loads are called off, every
byte is given back, gRPC ends, then HTTP, then the threads.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from importlib.metadata import version
from typing import TYPE_CHECKING, Literal

import torch

from eviction.costs import Costs
from eviction.ledger import Ledger
from eviction.policy import Policy
from loader.estate import Estate
from loader.load import Loader
from loader.manifest import ModelSpec
from loader.model import Model
from loader.store import Store
from runtime.announcement import announced as announced
from runtime.asgi.vigil import Vigil
from runtime.batch import Batcher
from runtime.cache import Bounds, ModelCache
from runtime.catalog import Catalog
from runtime.config import Settings
from runtime.counts import Counts
from runtime.devices import lanes_of, pick_device, share_cores
from runtime.engine import Engine
from runtime.generations import Generations
from runtime.inheritance import Inheritance
from runtime.inventory import Inventory
from runtime.kernels import chosen_kernels
from runtime.level import measured, watched
from runtime.loading import Bringing, loading
from runtime.local import LocalEngine
from runtime.metrics import Metrics
from runtime.observer import Observer
from runtime.policy import chosen
from runtime.prefetch import Listening, World, prefetching
from runtime.prewarm import prewarmed
from runtime.rest import application, listening
from runtime.rest_pages import ServerInfo
from runtime.running import Running, running
from runtime.server import Options, start
from runtime.serving import Serving
from runtime.statistics import Statistics
from runtime.ways import Ways

if TYPE_CHECKING:
    from starlette.applications import Starlette

DEVICE_LOST = 70
"""Exit code after a sticky device error: whoever started us should start us again."""


async def serve(settings: Settings, store: Store | None = None) -> int:
    """Serve until told to stop; gives the exit code. `store`: other than settings'."""
    lost = asyncio.Event()
    counts = Counts(settings.metrics_top)
    release = version("hotset")
    metrics, info = Metrics(counts, release), ServerInfo(settings.server_name, release)
    async with contextlib.AsyncExitStack() as stack:
        engine = await stack.enter_async_context(
            composed(settings, counts, lost.set, store)
        )
        vigil = Vigil()
        app = application(engine, metrics, info, settings.max_message, vigil)
        http_port = await stack.enter_async_context(
            listening(app, settings.host, settings.http_port)
        )
        serving = await stack.enter_async_context(
            await grpc_of(engine, settings, app, vigil)
        )
        # Before we say that we serve: who is told so may well end us at once.
        told = asyncio.ensure_future(serving.told_to_stop())
        await asyncio.sleep(0)
        http = f"{settings.host}:{http_port}"
        await stack.enter_async_context(
            announced(
                engine, store or Store.open(settings.store), serving.address, http
            )
        )
        await _first(told, asyncio.ensure_future(lost.wait()))
    return DEVICE_LOST if lost.is_set() else 0


async def grpc_of(
    engine: Engine,
    settings: Settings,
    app: "Starlette",
    vigil: Vigil,
    reuse_port: bool = False,
) -> Serving:
    """The gRPC server of an engine, listening as the settings say. `app`: REST,
    whose predicts `vigil` sees."""
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    address = f"{host}:{settings.grpc_port}"
    options = Options(
        max_message_bytes=settings.max_message,
        grace=settings.grace,
        name=settings.server_name,
        reuse_port=reuse_port,
    )
    if settings.frontend == "zttp":
        # Imported here: it is an extra.
        from runtime.http2.server import start as start_zttp

        return await start_zttp(
            engine, address=address, options=options, rest=app, vigil=vigil
        )
    return await start(engine, address=address, options=options)


@contextlib.asynccontextmanager
async def composed(
    settings: Settings,
    observer: Observer,
    on_lost: Callable[[], None] = lambda: None,
    store: Store | None = None,
    inherited: Inheritance | None = None,
) -> AsyncIterator[LocalEngine]:
    """An engine as the settings say, drained and taken apart when the block is left.

    Raises ValueError (the store's URL), Unservable, runtime.nvml.GaugeUnavailable.
    """
    store, inherited = store or Store.open(settings.store), inherited or Inheritance()
    device = pick_device(settings.device)
    share_cores(device, lanes_of(settings, device))
    onednn = chosen_kernels(settings, device, inherited.onednn_from)
    ledger, costs = Ledger(0), Costs()
    async with contextlib.AsyncExitStack() as stack:
        bringing = await stack.enter_async_context(
            loading(
                *(settings, store, device, ledger, costs),
                estate=_estate(inherited, device),
                onednn=onednn,
            )
        )
        loader = bringing.loader
        level = stack.enter_context(measured(settings, device, loader, ledger))
        policy = await stack.enter_async_context(chosen(settings, costs, ledger))
        listening = Listening(policy)
        if settings.prefetch:
            policy = listening
        cache = _cache(settings, loader, policy, ledger, observer, level.at_best)
        _acquaint(loader, cache, costs)
        cache.arrivals.turns = bringing.turns
        runs = stack.enter_context(
            running(settings, device, level.share.reserve, on_lost)
        )
        engine = _engine(settings, store, loader, cache, runs, observer)
        engine.inventory.measured = level.first.used
        engine.inventory.onednn_from = onednn.onednn_from if onednn else 0
        stack.push_async_callback(engine.drain)
        stack.callback(loader.stop_keeping)
        if settings.compile == "auto":
            # Imported here: it needs parts of torch that others can do without.
            from runtime.compiling import compiling

            await stack.enter_async_context(
                compiling(settings, loader, cache, runs.lanes, engine)
            )
        await stack.enter_async_context(
            watched(settings, level, cache, engine.inventory, loader)
        )
        await stack.enter_async_context(
            prewarmed(settings.prewarm, engine, cache, loader.size, inherited.residents)
        )
        await stack.enter_async_context(_prefetched(listening, bringing, engine, cache))
        yield engine


def _estate(inherited: Inheritance, device: torch.device) -> Estate | None:
    if inherited.host is None:
        return None
    return Estate(*inherited.host, pinned=device.type == "cuda")


def _cache(
    settings: Settings,
    loader: Loader,
    policy: Policy,
    ledger: Ledger,
    observer: Observer,
    budget: int,
) -> ModelCache[Model]:
    bounds = Bounds(
        settings.concurrent_loads,
        settings.max_waiting,
        settings.patience,
        settings.idle_ttl,
        settings.anti_thrash,
    )
    return ModelCache(
        loader,
        policy,
        ledger,
        observer,
        bounds,
        budget=budget,
        tenants=settings.tenant_shares,
    )


def _acquaint(loader: Loader, cache: ModelCache[Model], costs: Costs) -> None:
    """The loader may move whom nobody uses; the cache asks what coming back costs."""
    loader.idle = cache.idle
    cache.room.reload_s = lambda specs, nbytes, load_s: costs.each(
        map(loader.falls_to, specs), nbytes, [spec.key for spec in specs]
    )


def _engine(
    settings: Settings,
    store: Store,
    loader: Loader,
    cache: ModelCache[Model],
    runs: Running,
    observer: Observer,
) -> LocalEngine:
    """The batcher tells the engine, which is made last."""
    generations = Generations(cache)
    catalog = Catalog(
        store, settings.catalog_ttl, settings.unknown_ttl, generations.replaced
    )
    batcher = Batcher(
        runs.lanes,
        lambda model, waits, rows, seconds: engine.ran(model, waits, rows, seconds),
        settings.max_waiting,
        settings.batching,
        settings.max_queue_delay,
        Ways(runs.lanes, runs.cross, runs.recordings),
    )
    statistics, device = Statistics(), str(runs.lanes.device)
    inventory = Inventory(catalog, cache, statistics, device, settings.policy)
    inventory.tiers, inventory.bytes_below = loader.tiers, loader.bytes_below
    if runs.recordings is not None:
        inventory.compiled = runs.recordings.status
        inventory.note = runs.recordings.note
    engine = LocalEngine(
        catalog, cache, batcher, observer, statistics, inventory, generations
    )
    engine.longest_forward = runs.lanes.longest
    return engine


@contextlib.asynccontextmanager
async def _prefetched(
    listening: Listening,
    bringing: Bringing,
    engine: LocalEngine,
    cache: ModelCache[Model],
) -> AsyncIterator[None]:
    """What the recent past says comes next is fetched behind our back."""
    if bringing.ahead is None:
        yield
        return

    def wanted(spec: ModelSpec) -> bool:
        near = {"ahead", "host"} & bringing.loader.bytes_below(spec).keys()
        return spec.key not in cache.residencies and not near

    world = World(engine.known, wanted, cache.clock)
    async with prefetching(listening, bringing.ahead, bringing.turns, world):
        yield


async def _first(
    *tasks: "asyncio.Future[None] | asyncio.Future[Literal[True]]",
) -> None:
    """Until one of them ends; the others are called off."""
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
