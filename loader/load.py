"""The loader: from a manifest to a model in device memory, and out again.

    size       an upper bound from model.json alone, no I/O: what the ledger books
    load       graph (shared) beside the weights (loader/warm.py), then bind
    unload     the host tier keeps the bytes if it may; then they are free

Owns: the order of these steps, and that whatever goes wrong, a cancellation too, leaves
nothing behind. Must not: know budgets, leases or requests; `idle` tells it which models
nobody uses just now, so that they may be moved aside.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from concurrent.futures import Executor

import structlog
import torch

from loader.ahead import Ahead
from loader.arena import ONE_SLAB
from loader.carrier import Carrier, carrier_for
from loader.errors import ArtifactRefused, StoreUnreachable
from loader.fill import Filler
from loader.graph import Graph
from loader.graphs import GraphShelf
from loader.host import HostTier
from loader.manifest import ModelSpec
from loader.memory import DeviceMemory
from loader.model import Model as Model
from loader.pinned import pool_for
from loader.placing import Placed, Placings
from loader.pool import Pool
from loader.room import Below, Filled
from loader.slab import Block, rounded
from loader.slabs import Slabs
from loader.spool import Spool
from loader.store import Store
from loader.tier import Space, Tiers
from loader.warm import Warm
from loader.weights import Views, bind

log = structlog.get_logger()


class Early:
    """Weights bound to a block while its bytes are on their way: 150 tensors take as
    long as reading 2 MB. What does not fit is found when the bytes are there."""

    def __init__(self, views: Views, slabs: Slabs, graph: Graph) -> None:
        self._views = views
        self._slabs = slabs
        self._graph = graph
        self.weights: dict[Block, tuple[torch.Tensor, ...]] = {}

    def bind(self, block: Block, placed: Placed) -> None:
        """The block that is being filled just now; called by the event loop."""
        if block.slab is None:
            return
        with contextlib.suppress(ArtifactRefused):
            views = self._views.of(placed, self._graph)
            self.weights[block] = bind(views, self._slabs.buffer(block))


Told = Callable[[str, int, float, str], None]


class Loader:
    """Brings models in from a store and takes them out.

    `timeout`: seconds a load. `capacity`: bytes the arena may have just now. `below`:
    who brings bytes from disk and store, `carrier` from the host tier, if they are not
    to be made here. `told`: hears of each load's tier, bytes, seconds and model.
    """

    def __init__(
        self,
        store: Store,
        shelf: GraphShelf,
        memory: DeviceMemory,
        executor: Executor,
        timeout: float = 120.0,
        *,
        capacity: Callable[[], int] = lambda: 4 * ONE_SLAB,
        pool: Pool | None = None,
        host: HostTier | None = None,
        spool: Spool | None = None,
        ahead: Ahead | None = None,
        below: Below | None = None,
        carrier: Carrier | None = None,
        told: Told = lambda tier, nbytes, seconds, key: None,
    ) -> None:
        self._shelf = shelf
        self._device = memory.device
        self._timeout = timeout
        self._host = host
        self._spool = spool
        self._told = told
        self._views = Views()
        self._models: dict[Block, Model] = {}
        self.slabs = Slabs(memory, capacity, self._moved, self._may_move)
        if below is None:
            pool = pool or pool_for(memory.device, 4)
            below = Filler(store, Placings(), executor, pool, spool)
        self._below = below
        carrier = carrier or carrier_for(memory.device, executor)
        self._warm = Warm(self.slabs, carrier, ahead or host, below)
        self._ahead = ahead
        if ahead is not None:
            ahead.fills_from(below)
        self.idle: Callable[[str], bool] = lambda key: False
        self._loads: dict[str, int] = {}

    def size(self, spec: ModelSpec) -> int:
        """The file's size as the arena rounds it, never less than the block's (why:
        loader/placing.py)."""
        return rounded(spec.weights.size)

    def falls_to(self, spec: ModelSpec) -> str:
        """The tier that would serve the next load, were the model evicted now."""
        digest, size = spec.weights.identity, spec.weights.size
        if self._host is not None and size <= self._host.capacity:
            return "host"
        on_disk = self._spool is not None and self._spool.holds(digest)
        return "disk" if on_disk else "store"

    def stop_keeping(self) -> None:
        """The server drains: what leaves the device from now on is not copied."""
        if self._host is not None:
            self._host.stop()

    def tiers(self) -> Tiers:
        """How the arena and the tiers below it stand."""
        arena = self.slabs.arena
        space = Space(
            arena.cost, arena.held, len(arena.slabs), arena.fragmentation,
            arena.compactions, arena.moved_bytes,
        )  # fmt: skip
        below = (self._ahead, self._host, self._spool)
        tiers = tuple(t.tier() for t in below if t is not None)
        return Tiers(space, dict(self._loads), tiers, self._below.pid)

    def bytes_below(self, spec: ModelSpec) -> dict[str, int]:
        """The model's bytes in the tiers below the device."""
        digest, size = spec.weights.identity, spec.weights.size
        tiers = {"ahead": self._ahead, "host": self._host, "disk": self._spool}
        return {
            name: size
            for name, tier in tiers.items()
            if tier is not None and tier.holds(digest)
        }

    async def graph_text(self, spec: ModelSpec) -> bytes:
        """The file of a model's graph. Raises ArtifactRefused, StoreUnreachable."""
        return await self._shelf.text(spec)

    async def load(self, spec: ModelSpec) -> Model:
        """The model, checked byte by byte, or one of `loader.errors`.

        Whatever it raises, CancelledError too, nothing is held when it does.
        """
        began = time.perf_counter()
        try:
            async with asyncio.timeout(self._timeout):
                model = await self._load(spec)
        except TimeoutError as error:
            raise StoreUnreachable(
                f"loading model '{spec.name}' took longer than {self._timeout:g} s"
            ) from error
        self._loads[model.tier] = self._loads.get(model.tier, 0) + 1
        took = time.perf_counter() - began
        self._told(model.tier, model.nbytes, took, spec.key)
        return model

    async def unload(self, model: Model) -> None:
        """Drop the last references. Its leases have ended, and with them its work on
        the device (runtime/lanes.py waits for it): nobody runs it."""
        if self._host is not None:
            digest, source = model.spec.weights.identity, self.slabs.buffer(model.block)
            try:
                await self._host.keep(
                    digest, model.spec.weights.size, model.placed, source
                )
            except Exception as error:
                log.error("the host tier could not keep a model", exc_info=error)
            del source  # a view: its slab could not go
        model.let_go()
        del self._models[model.block]
        self.slabs.free(model.block)

    async def _load(self, spec: ModelSpec) -> Model:
        graph = self._shelf.known(spec)
        if graph is not None:
            early = Early(self._views, self.slabs, graph)
            filled = await self._warm.fill(spec, early.bind)
            return self._bound(spec, graph, filled, early.weights.get(filled.block))
        graph_task = asyncio.get_running_loop().create_task(self._shelf.get(spec))
        # If the weights fail first, nobody reads what became of the graph.
        graph_task.add_done_callback(lambda task: task.cancelled() or task.exception())
        try:
            filled = await self._warm.fill(spec)
            try:
                graph = await graph_task
            except BaseException:
                self.slabs.free(filled.block)
                raise
        finally:
            graph_task.cancel()  # a no-op when it is done
        return self._bound(spec, graph, filled)

    def _bound(
        self,
        spec: ModelSpec,
        graph: Graph,
        filled: Filled,
        weights: tuple[torch.Tensor, ...] | None = None,
    ) -> Model:
        """The graph over the block's bytes, `weights` if they are made. Raises
        ArtifactRefused if they do not fit each other; then the block is free."""
        try:
            graph.check(spec)
            views = self._views.of(filled.placed, graph)
            model = Model(spec, graph, views, filled, self._device)
            model.bind(self.slabs.buffer(filled.block), weights)
        except BaseException:
            self.slabs.free(filled.block)
            raise
        self._models[model.block] = model
        self.slabs.at_rest()
        return model

    def _may_move(self, block: Block) -> bool:
        model = self._models.get(block)
        return model is not None and self.idle(model.spec.key)

    def _moved(self, block: Block) -> None:
        self._models[block].bind(self.slabs.buffer(block))
