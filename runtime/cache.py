"""The cache: which models are resident, who uses them, who comes and who leaves.

    lease (hit)    find -> READY -> use                       no await, no task
    lease (miss)   find -> nothing -> begin -> wait -> use
    bring in       door (FIFO) -> hold the bound -> load -> settle the bytes -> READY
    take out       LEAVING -> leases run out -> unload -> release -> GONE

Owns: the residencies, the ledger's bookings, the tasks that load and unload. Must not:
touch torch, NVML, storage, protobuf or the names of metrics.

The event loop owns all of this, so there are no locks: between two awaits nobody else
moves. What decides is a plain `def`; what waits is `async`. The five traps, each a test
of its name in tests/test_cache_traps.py:

1. a waiter is a lease from the moment it asks, or a fresh model is evicted unused;
2. all victims are marked in the same breath, before anything awaits;
3. an unload is a task of the cache, never a child of the load that wanted the room:
   cancelling that load would leave a model half gone;
4. a cancelled request does not stop its device thread: the lease outlives the thread
   (runtime/lanes.py);
5. the server's stop may return while handlers run: `aclose` waits for leases itself.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import structlog

from eviction.ledger import Ledger
from eviction.plan import Candidate, plan
from eviction.policy import Policy
from loader.errors import DeviceFull, LoadFailed
from loader.manifest import ModelSpec
from runtime.door import Door
from runtime.errors import BackingOff, Draining, TooLarge
from runtime.failures import Failures
from runtime.lease import Lease
from runtime.observer import Observer
from runtime.residency import M, Residency, Stage

log = structlog.get_logger()
T = TypeVar("T")


class Loading(Protocol[M]):
    """What brings models in and takes them out (loader.load.Loader; fakes in tests)."""

    def size(self, spec: ModelSpec) -> int:
        """Upper bound of the device bytes, from the manifest alone: no I/O."""
        ...

    async def load(self, spec: ModelSpec) -> M:
        """Bring it in. When it raises, CancelledError too, nothing is held any more."""
        ...

    async def unload(self, model: M) -> None:
        """Take it out; returns when its bytes are free. Never raises."""
        ...


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the cache may do. Times in seconds."""

    concurrent_loads: int = 4
    max_waiting: int = 16384
    patience: float = 30.0
    """How long a request without a deadline waits for room."""


class ModelCache(Generic[M]):
    """The hot set under one ledger. One instance, one event loop."""

    def __init__(
        self,
        loader: Loading[M],
        policy: Policy,
        ledger: Ledger,
        observer: Observer,
        bounds: Bounds | None = None,
        budget: int | None = None,
    ) -> None:
        self._loader = loader
        self.policy = policy
        self.ledger = ledger
        self.budget = ledger.capacity if budget is None else budget
        """What no model may exceed; the capacity may be below it for a while."""
        self._observer = observer
        self.bounds = bounds or Bounds()
        self.clock: Callable[[], float] = asyncio.get_running_loop().time
        self.residencies: dict[str, Residency[M]] = {}
        self.failures: Failures[M] = Failures()
        self.reload_s: Callable[[Residency[M]], float] = lambda life: life.load_s
        """What bringing it back would take, if known better than by its last load."""
        self.door = Door(ledger, self.bounds.concurrent_loads)
        self._tasks: set[asyncio.Task[None]] = set()
        self._leaving_bytes = 0
        self.waiting = 0
        self.loads = self.evictions = self.failed_loads = 0
        self.closing = False

    # -- leases ---------------------------------------------------------------------

    def lease(self, spec: ModelSpec, deadline: float | None = None) -> Lease[M]:
        """`async with cache.lease(spec) as model`; `deadline` on the loop's clock."""
        return Lease(self, spec, deadline)

    def find(self, key: str) -> Residency[M] | None:
        """The residency a lease may join; raises what is remembered of a failure."""
        residency = self.residencies.get(key)
        if residency is None:
            self.failures.recall(key, self.clock())
        return residency

    def idle(self, key: str) -> bool:
        """True if the model is resident and nobody uses it: its bytes may be moved, by
        a plain call that ends before anybody else does anything."""
        life = self.residencies.get(key)
        return life is not None and life.stage is Stage.READY and not life.leases

    def begin(self, spec: ModelSpec) -> Residency[M]:
        """Start a life. Refused at once if it could never fit: nothing is fetched."""
        need = self._loader.size(spec)
        if need > self.budget:
            raise TooLarge(
                f"model '{spec.name}' needs {need} bytes, more than the whole budget "
                f"of {self.budget} bytes"
            )
        loop = asyncio.get_running_loop()
        residency: Residency[M] = Residency(
            spec=spec,
            since=self.clock(),
            arrival=loop.create_future(),
            gone=loop.create_future(),
        )
        # It may be that nobody is left to read a failure: no reason for a warning.
        residency.arrival.add_done_callback(lambda f: f.cancelled() or f.exception())
        self.residencies[spec.key] = residency
        task = loop.create_task(self._bring_in(spec, need))
        # The end is handled in a callback, not in the task's own `finally`: a task
        # cancelled before its first step never runs a line of its body.
        task.add_done_callback(lambda ended: self._landed(residency, ended))
        residency.task = task
        return residency

    def released(self, residency: Residency[M]) -> None:
        """The last lease of a life ended. A load nobody waits for is called off."""
        if residency.stage is Stage.LOADING:
            self._abandon(residency, None)
        elif self.door or self.ledger.free < 0:
            self._reconsider()

    # -- coming ---------------------------------------------------------------------

    async def _bring_in(self, spec: ModelSpec, need: int) -> M:
        try:
            return await self._load_with_room(spec, need)
        except DeviceFull as full:
            # The ledger planned, the device disagreed (another process, activations).
            # Believe the device until the gauge reads again: one more try, with as
            # much again evicted.
            self.ledger.release(spec.key)
            self.resize(max(self.ledger.held, self.ledger.capacity - need))
            try:
                # Bounded here: who waits has seen this load pass the door once, and
                # no longer counts its patience.
                return await self._load_with_room(spec, need, self.bounds.patience)
            except TimeoutError:
                raise full from None

    async def _load_with_room(
        self, spec: ModelSpec, need: int, patience: float | None = None
    ) -> M:
        want = self.door.stand(spec.key, need)
        self._reconsider()
        async with asyncio.timeout(patience):
            await self.door.enter(want)
        try:
            return await self._loader.load(spec)
        finally:
            self.door.leave()

    def _landed(self, residency: Residency[M], task: asyncio.Task[M]) -> None:
        """A load has ended: arrived, failed or called off. Plain: nothing awaits here,
        so whatever a waiter sees next is a finished state."""
        spec, residency.task = residency.spec, None
        error = None if task.cancelled() else task.exception()
        if not task.cancelled() and error is None:
            self._arrived(residency, task.result())
        else:
            if spec.key in self.ledger:
                self.ledger.release(spec.key)
            del self.residencies[spec.key]
            if residency.stage is Stage.LOADING and not isinstance(error, Exception):
                # Not ours: somebody ends the whole event loop. Leave no waiter behind.
                error = Draining("the server is shutting down", 1.0)
            if isinstance(error, Exception):
                self._failed(residency, error)
            if residency.stage is Stage.LEAVING:
                residency.move(Stage.GONE)
        self._reconsider()

    def _arrived(self, residency: Residency[M], model: M) -> None:
        spec, now = residency.spec, self.clock()
        self.ledger.hold(spec.key, model.nbytes)  # settle: the bound becomes the fact
        residency.model = model
        residency.load_s, residency.since = now - residency.since, now
        residency.last_use = now
        self.loads += 1
        self.policy.on_load(spec.key, model.nbytes, residency.load_s, now)
        self._observer.loaded(spec, model.nbytes, model.phases, residency.load_s)
        if residency.stage is Stage.LEAVING:
            # Called off when it had already arrived: the cancel came too late.
            self._send_off(residency, "unwanted")
            return
        residency.move(Stage.READY)
        residency.arrival.set_result(model)

    def _failed(self, residency: Residency[M], error: Exception) -> None:
        spec, now = residency.spec, self.clock()
        self.failed_loads += 1
        self._observer.load_failed(spec, type(error).__name__, now - residency.since)
        told = log.bind(model=spec.name, version=spec.version)
        if isinstance(error, LoadFailed):
            cause = repr(error.__cause__)
            told.warning("load failed", reason=error.message, cause=cause)
        else:
            told.error("load failed", exc_info=error)
        if residency.stage is not Stage.LEAVING:  # else nobody waits for the news
            self.failures.remember(residency, error, now)
            residency.arrival.set_exception(error)

    # -- leaving --------------------------------------------------------------------

    def _abandon(self, residency: Residency[M], why: Exception | None) -> None:
        """Call a load off; `why` is what those still waiting for it are told."""
        residency.move(Stage.LEAVING)
        if why is not None and not residency.arrival.done():
            residency.arrival.set_exception(why)
        assert residency.task is not None
        residency.task.cancel()

    def _dismiss(self, residency: Residency[M], reason: str) -> None:
        residency.move(Stage.LEAVING)
        self._send_off(residency, reason)

    def _send_off(self, residency: Residency[M], reason: str) -> None:
        nbytes = self.ledger.size(residency.spec.key)
        self._leaving_bytes += nbytes
        self._spawn(self._take_out(residency, nbytes, reason))

    async def _take_out(
        self, residency: Residency[M], nbytes: int, reason: str
    ) -> None:
        while residency.leases:
            await residency.idle.wait()
        key, model = residency.spec.key, residency.model
        assert model is not None
        residency.model = None
        await self._loader.unload(model)
        self._leaving_bytes -= nbytes
        self.ledger.release(key)
        del self.residencies[key]
        residency.move(Stage.GONE)
        self.policy.on_evict(key, self.clock())
        self.evictions += 1
        self._observer.evicted(residency.spec, nbytes, reason)
        self._reconsider()

    # -- room -----------------------------------------------------------------------

    def resize(self, capacity: int) -> None:
        """The gauge's word: so much is ours now. Idle models leave if need be."""
        self.ledger.resize(capacity)
        self._reconsider()

    def _reconsider(self) -> None:
        """Something changed: let in whom there is room for, or see that room comes."""
        overdraft = -self.ledger.free - self._leaving_bytes
        if overdraft > 0:
            # Less capacity than we hold: leaving helps even where it does not suffice.
            candidates = list(self._may_leave())
            have = sum(c.nbytes for c in candidates)
            self._make_room(candidates, min(overdraft, have), "shrunk")
        short = self.door.admit() - self._leaving_bytes
        if short > 0:
            self._make_room(list(self._may_leave()), short, "room")

    def _make_room(self, candidates: list[Candidate], need: int, reason: str) -> None:
        for key in plan(self.policy, candidates, need, self.clock()).victims:
            victim = self.residencies[key]
            if victim.leases:
                raise AssertionError(
                    f"{victim!r} is in use and was chosen to leave. This is a bug."
                )
            self._dismiss(victim, reason)

    def _may_leave(self) -> Iterator[Candidate]:
        for key, residency in self.residencies.items():
            if residency.stage is not Stage.READY or residency.leases:
                continue
            spec = residency.spec
            if not spec.pin:
                yield Candidate(
                    model=key,
                    nbytes=self.ledger.size(key),
                    reload_s=self.reload_s(residency),
                    priority=spec.priority,
                    tenant=spec.tenant,
                    since=residency.since,
                    load_s=residency.load_s,
                )

    # -- operators ------------------------------------------------------------------

    async def unload(self, key: str) -> None:
        """Make absent; returns when its bytes are free. Leases run out first."""
        self.failures.forget(key)
        residency = self.residencies.get(key)
        if residency is None:
            return
        if residency.stage is Stage.READY:
            self._dismiss(residency, "unloaded")
        elif residency.stage is Stage.LOADING:
            name = residency.spec.name
            why = BackingOff(f"model '{name}' was unloaded while it loaded", 0.1)
            self._abandon(residency, why)
        await asyncio.wait((residency.gone,))

    async def aclose(self) -> None:
        """Refuse new lives, call loads off, wait for leases, free it all (trap 5)."""
        self.closing = True
        for residency in list(self.residencies.values()):
            if residency.stage is Stage.LOADING:
                self._abandon(residency, Draining("the server is shutting down", 1.0))
            elif residency.stage is Stage.READY:
                self._dismiss(residency, "drained")
        while self.residencies:
            await asyncio.wait([r.gone for r in self.residencies.values()])
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)  # the loop itself holds tasks weakly
        task.add_done_callback(self._tasks.discard)

    def __repr__(self) -> str:
        lines = ", ".join(repr(r) for r in self.residencies.values())
        return f"{self.ledger.held}/{self.ledger.capacity} bytes | {lines or 'empty'}"
