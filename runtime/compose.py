"""The composition root: every object is made here, once, and given what it uses.

Owns: the order of coming up and going down. Must not: hold logic of its own.

Shutdown is nesting: what is entered last is left first. SIGTERM: health says
NOT_SERVING, new calls are refused, those in flight finish, loads are called off, every
byte is given back, gRPC ends, then HTTP, then the threads.
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable
from importlib.metadata import version
from typing import Literal

import structlog
import torch

from eviction.costs import Costs
from eviction.history import Remembering
from eviction.ledger import Ledger
from eviction.policies import POLICIES
from eviction.policy import Policy
from loader.load import Loader
from loader.model import Model
from loader.store import Store
from runtime import access_log, journal
from runtime.batch import Batcher
from runtime.budget import Tide, default_reserve
from runtime.cache import Bounds, ModelCache
from runtime.catalog import Catalog
from runtime.config import Settings
from runtime.counts import Counts
from runtime.lanes import Lanes
from runtime.loading import Unservable as Unservable
from runtime.loading import loading
from runtime.local import LocalEngine
from runtime.metrics import Metrics
from runtime.observer import Observer
from runtime.prewarm import Wishes, prewarm, resident
from runtime.rest import ServerInfo, application, listening
from runtime.server import Options, start
from runtime.statistics import Statistics
from runtime.vram import Reading, open_gauge
from runtime.watch import Share, watch

log = structlog.get_logger()

DEVICE_LOST = 70
"""Exit code after a sticky device error: whoever started us should start us again."""


async def serve(settings: Settings, store: Store | None = None) -> int:
    """Serve until told to stop; gives the exit code. `store`: other than settings'."""
    lost = asyncio.Event()
    counts = Counts(settings.metrics_top)
    release = version("hotset")
    metrics, info = Metrics(counts, release), ServerInfo(settings.server_name, release)
    options = Options(
        max_message_bytes=settings.max_message,
        grace=settings.grace,
        name=settings.server_name,
    )
    async with contextlib.AsyncExitStack() as stack:
        engine = await stack.enter_async_context(
            composed(settings, counts, lost.set, store)
        )
        app = application(engine, metrics, info)
        http_port = await stack.enter_async_context(
            listening(app, settings.host, settings.http_port)
        )
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        address = f"{host}:{settings.grpc_port}"
        serving = await stack.enter_async_context(
            await start(engine, address=address, options=options)
        )
        # Before we say that we serve: who is told so may well end us at once.
        told = asyncio.ensure_future(serving.told_to_stop())
        await asyncio.sleep(0)
        snapshot = engine.snapshot()
        log.info(
            "serving",
            grpc=serving.address,
            http=f"{settings.host}:{http_port}",
            device=snapshot.device,
            capacity=snapshot.capacity,
            policy=snapshot.policy,
        )
        await _first(told, asyncio.ensure_future(lost.wait()))
    return DEVICE_LOST if lost.is_set() else 0


@contextlib.asynccontextmanager
async def composed(
    settings: Settings,
    observer: Observer,
    on_lost: Callable[[], None] = lambda: None,
    store: Store | None = None,
) -> AsyncIterator[LocalEngine]:
    """An engine as the settings say, drained and taken apart when the block is left.

    Raises ValueError (the store's URL), Unservable, runtime.nvml.GaugeUnavailable.
    """
    store = store or Store.open(settings.store)
    device = pick_device(settings.device)
    lanes_count = settings.lanes or default_lanes(device)
    _share_cores(device, lanes_count)
    ledger, costs = Ledger(0), Costs()
    async with contextlib.AsyncExitStack() as stack:
        loader = await stack.enter_async_context(
            loading(settings, store, device, ledger, costs)
        )
        arena = loader.slabs.arena
        # What was touched of the arena is this process' own, held or free again.
        ours = (lambda: arena.touched) if device.type == "cpu" else None
        gauge = open_gauge(device, os.environ, ours)
        stack.callback(gauge.close)
        reading = gauge.read()
        share, tide = share_of(settings, reading, device), Tide()
        began = asyncio.get_running_loop().time()
        ledger.resize(tide.told(began, share.now(reading)))

        cache = ModelCache(
            loader,
            await stack.enter_async_context(_policy(settings, costs, ledger)),
            ledger,
            observer,
            Bounds(
                settings.concurrent_loads,
                settings.max_waiting,
                settings.patience,
                settings.idle_ttl,
                settings.anti_thrash,
            ),
            budget=share.at_best(reading),
            tenants=settings.tenant_shares,
        )
        loader.idle = cache.idle
        cache.room.reload_s = lambda spec, nbytes, load_s: costs.seconds(
            loader.falls_to(spec), nbytes
        )
        lanes = Lanes(device, lanes_count, on_lost)
        stack.callback(lanes.close)
        engine = LocalEngine(
            # The catalog and the batcher tell the engine, which is made last.
            Catalog(
                store,
                settings.catalog_ttl,
                settings.unknown_ttl,
                lambda old, new: engine.replaced(old, new),
            ),
            cache,
            Batcher(
                lanes,
                lambda model, batch, seconds: engine.ran(model, batch, seconds),
                settings.max_waiting,
                settings.batching,
            ),
            observer,
            Statistics(),
            device,
            settings.policy,
        )
        engine.measured, engine.tiers = reading.used, loader.tiers
        engine.bytes_below = loader.bytes_below
        stack.push_async_callback(engine.drain)
        stack.callback(loader.stop_keeping)
        watching = asyncio.create_task(
            watch(
                gauge,
                share,
                tide,
                cache,
                engine,
                settings.gauge_interval,
                loader.slabs.shrink,
            )
        )
        stack.push_async_callback(_ended, watching)
        await stack.enter_async_context(
            _prewarmed(settings.prewarm, engine, cache, loader)
        )
        yield engine


@contextlib.asynccontextmanager
async def _policy(
    settings: Settings, costs: Costs, ledger: Ledger
) -> AsyncIterator[Policy]:
    """The policy, with what it knew in its last life, and what listens to it."""
    policy: Policy = POLICIES[settings.policy]()
    async with contextlib.AsyncExitStack() as stack:
        if settings.history:
            policy = remembering = Remembering(policy)
            journal.recall(settings.history, remembering, costs, ledger.capacity)
            kept = journal.kept(settings.history, remembering, costs)
            await stack.enter_async_context(kept)
        if settings.access_log:
            policy = await stack.enter_async_context(
                access_log.kept(settings.access_log, settings.access_log_size, policy)
            )
        yield policy


@contextlib.asynccontextmanager
async def _prewarmed(
    setting: str, engine: LocalEngine, cache: ModelCache[Model], loader: Loader
) -> AsyncIterator[None]:
    """Models come in behind our back; who was in is written down at the end."""
    if not setting:
        yield
        return
    wishes = Wishes(setting)
    task = asyncio.create_task(prewarm(wishes.read(), engine, cache, loader.size))
    try:
        yield
    finally:
        await _ended(task)
        wishes.write(resident(cache))


def share_of(settings: Settings, reading: Reading, device: torch.device) -> Share:
    """What of the device is ours."""
    reserve = settings.reserve
    if reserve is None:
        reserve = default_reserve(reading.total, device.type == "cuda")
    return Share(settings.budget, reserve)


def pick_device(name: str) -> torch.device:
    """`auto`, `cpu`, `cuda` or `cuda:N` as a device that is there, or Unservable."""
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    device = torch.device("cuda:0" if name in ("auto", "cuda") else name)
    if not torch.cuda.is_available():
        raise Unservable(
            f"--device {name}: torch sees no CUDA device here; use --device cpu, or "
            "check the driver and the container's GPU request"
        )
    if device.index >= torch.cuda.device_count():
        raise Unservable(
            f"--device {name}: there are {torch.cuda.device_count()} CUDA devices, "
            "counted from 0"
        )
    # Makes the context, so that the first reading of the gauge sees its cost.
    torch.zeros(1, device=device)
    return device


def _share_cores(device: torch.device, lanes: int) -> None:
    """The lanes are the parallelism: small models gain nothing from more threads a
    call, and threads of several calls would fight for the same cores."""
    if device.type == "cpu":
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // lanes))


def default_lanes(device: torch.device) -> int:
    """A lane for each core up to four; on a GPU two, so that one copies while the
    other computes (each stream has cuBLAS workspaces of its own: 64 MiB)."""
    return 2 if device.type == "cuda" else min(4, os.cpu_count() or 1)


async def _first(
    *tasks: "asyncio.Future[None] | asyncio.Future[Literal[True]]",
) -> None:
    """Until one of them ends; the others are called off."""
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
