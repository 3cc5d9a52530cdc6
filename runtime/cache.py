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
from collections.abc import Callable, Coroutine
from typing import Generic

from eviction.ledger import Ledger
from eviction.plan import Plan
from eviction.policy import Policy
from eviction.spiral import Spiral
from loader.errors import ArtifactRefused, DeviceFull
from loader.manifest import ModelSpec
from loader.turns import ERRAND, Errand, Turns
from runtime.alarm import Alarm
from runtime.bounds import Bounds as Bounds
from runtime.chronicle import Chronicle
from runtime.decisions import NO_VERDICT, Verdict
from runtime.door import Door
from runtime.errors import BackingOff, Draining, NoRoom
from runtime.failures import Failures
from runtime.lease import Lease
from runtime.observer import Observer
from runtime.residency import Loading, M, Residency, Stage
from runtime.room import Room, as_last_time
from runtime.tenants import Tenants


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
        tenants: Tenants | None = None,
    ) -> None:
        self._loader = loader
        self.policy = policy
        self.ledger = ledger
        self.budget = ledger.capacity if budget is None else budget
        """What no model may exceed; the capacity may be below it for a while."""
        self.bounds = bounds or Bounds()
        self.clock: Callable[[], float] = asyncio.get_running_loop().time
        self.residencies: dict[str, Residency[M]] = {}
        self.failures: Failures[M] = Failures()
        self.spiral = Spiral(self.bounds.anti_thrash)
        self.chronicle = Chronicle(policy, self.spiral, observer, lambda: self.clock())
        self.room: Room[M] = Room(
            policy,
            ledger,
            self.residencies,
            tenants or Tenants(),
            self.spiral,
            as_last_time,
            self.bounds.idle_ttl,
        )
        self.door = Door(ledger, self.bounds.concurrent_loads)
        self.door.barred = self.room.barred
        self.turns = Turns()
        self._alarm = Alarm(self._reconsider)
        self._tasks: set[asyncio.Task[None]] = set()
        self.waiting = 0
        self.loads = self.evictions = self.failed_loads = 0
        self.closing = False

    # -- leases ---------------------------------------------------------------------

    def lease(
        self, spec: ModelSpec, deadline: float | None = None, urgent: bool = True
    ) -> Lease[M]:
        """`async with cache.lease(spec) as model`; `deadline` on the loop's clock. Not
        `urgent`: no request waits for it."""
        return Lease(self, spec, deadline, urgent)

    def taken(self, key: str) -> Residency[M] | None:
        """A lease on a model that is resident, without a wait and so without an await:
        the hit path. Who takes it gives it back. None: `lease` must wait for it."""
        residency = self.residencies.get(key)
        if residency is None or residency.stage is not Stage.READY:
            return None
        residency.last_use = now = self.clock()
        self.policy.on_request(key, now, True)
        residency.take()
        residency.uses += 1
        return residency

    def give_back(self, residency: Residency[M]) -> None:
        """A lease ends."""
        residency.give_back()
        if not residency.leases:
            self.released(residency)

    def find(self, key: str) -> Residency[M] | None:
        """The residency a lease may join; raises what is remembered of a failure."""
        residency = self.residencies.get(key)
        if residency is None:
            self.failures.recall(key, self.clock())
        return residency

    def size(self, spec: ModelSpec) -> int:
        """Device bytes it would need, at most."""
        return self._loader.size(spec)

    def idle(self, key: str) -> bool:
        """True if the model is resident and nobody uses it: its bytes may be moved, by
        a plain call that ends before anybody else does anything."""
        life = self.residencies.get(key)
        return life is not None and life.stage is Stage.READY and not life.leases

    def begin(self, spec: ModelSpec, urgent: bool = True) -> Residency[M]:
        """Start a life. Refused at once if it could never fit: nothing is fetched."""
        need = self._loader.size(spec)
        self.spiral.wanted(spec.key, self.clock())
        refusal = self.room.refusal(spec, need, self.budget, self.clock())
        if refusal is not None:
            raise self.chronicle.refused(spec, refusal)
        loop = asyncio.get_running_loop()
        residency: Residency[M] = Residency(
            spec=spec,
            since=self.clock(),
            arrival=loop.create_future(),
            gone=loop.create_future(),
            errand=Errand(urgent),
        )
        self.turns.begin(residency.errand)
        # It may be that nobody is left to read a failure: no reason for a warning.
        residency.arrival.add_done_callback(lambda f: f.cancelled() or f.exception())
        self.residencies[spec.key] = residency
        task = loop.create_task(self._bring_in(spec, need))
        # The end is handled in a callback, not in the task's own `finally`: a task
        # cancelled before its first step never runs a line of its body.
        task.add_done_callback(lambda ended: self._landed(residency, ended))
        residency.task = task
        return residency

    def hurry(self, residency: Residency[M]) -> None:
        """A request joins a load that nobody waited for."""
        if not residency.errand.urgent:
            self.turns.hurry(residency.errand)
            self.door.hurry(residency.spec.key)
            self._reconsider()

    def released(self, residency: Residency[M]) -> None:
        """The last lease of a life ended. A load nobody waits for is called off."""
        residency.last_use = now = self.clock()
        if self.bounds.idle_ttl:
            self._alarm.by(now + self.bounds.idle_ttl)
        if residency.stage is Stage.LOADING:
            self._abandon(residency, None)
        elif self.door or self.ledger.free < 0:
            self._reconsider()

    # -- coming ---------------------------------------------------------------------

    async def _bring_in(self, spec: ModelSpec, need: int) -> M:
        ERRAND.set(self.residencies[spec.key].errand)
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
        want = self.door.stand(spec.key, need, self.residencies[spec.key].errand.urgent)
        self._reconsider()
        async with asyncio.timeout(patience):
            await self.door.enter(want)
        try:
            self.residencies[spec.key].begun = self.clock()
            model = await self._loader.load(spec)
        finally:
            self.door.leave(want)
        if model.nbytes > need:
            # More than was booked, which `_landed` could not settle. A task of its own,
            # as for any unload (trap 3).
            await asyncio.wait((self._spawn(self._loader.unload(model)),))
            raise ArtifactRefused(spec.weights.name, "takes more than model.json says")
        return model

    def _landed(self, residency: Residency[M], task: asyncio.Task[M]) -> None:
        """A load has ended: arrived, failed or called off. Plain: nothing awaits here,
        so whatever a waiter sees next is a finished state."""
        spec, residency.task = residency.spec, None
        self.turns.end(residency.errand)
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
        waited, residency.load_s = now - residency.since, now - residency.begun
        residency.since = residency.last_use = now
        self.loads += 1
        self.chronicle.loaded(residency, model, waited)
        if residency.stage is Stage.LEAVING:
            # Called off when it had already arrived: the cancel came too late.
            self._send_off(residency, "unwanted")
            return
        residency.move(Stage.READY)
        residency.arrival.set_result(model)

    def _failed(self, residency: Residency[M], error: Exception) -> None:
        self.failed_loads += 1
        self.chronicle.failed(residency, error)
        if residency.stage is not Stage.LEAVING:  # else nobody waits for the news
            self.failures.remember(residency, error, self.clock())
            residency.arrival.set_exception(error)

    # -- leaving --------------------------------------------------------------------

    def _abandon(self, residency: Residency[M], why: Exception | None) -> None:
        """Call a load off; `why` is what those still waiting for it are told."""
        residency.move(Stage.LEAVING)
        if why is not None and not residency.arrival.done():
            residency.arrival.set_exception(why)
        assert residency.task is not None
        self.turns.call_off(residency.errand)
        residency.task.cancel()

    def _dismiss(
        self, residency: Residency[M], reason: str, verdict: Verdict = NO_VERDICT
    ) -> None:
        residency.move(Stage.LEAVING)
        self._send_off(residency, reason, verdict)

    def _send_off(
        self, residency: Residency[M], reason: str, verdict: Verdict = NO_VERDICT
    ) -> None:
        leaving = self.room.candidate(residency)
        self.room.leaving += leaving.nbytes
        self.chronicle.leaves(residency, reason, leaving, verdict)
        self._spawn(self._take_out(residency, leaving.nbytes, reason))

    async def _take_out(
        self, residency: Residency[M], nbytes: int, reason: str
    ) -> None:
        await residency.emptied()
        key, model = residency.spec.key, residency.model
        assert model is not None
        residency.model = None
        await self._loader.unload(model)
        self.room.leaving -= nbytes
        self.ledger.release(key)
        del self.residencies[key]
        residency.move(Stage.GONE)
        self.evictions += 1
        self.chronicle.gone(residency, nbytes, reason)
        self._reconsider()

    # -- room -----------------------------------------------------------------------

    def resize(self, capacity: int) -> None:
        """The gauge's word: so much is ours now. Idle models leave if need be."""
        if capacity < self.ledger.capacity:
            self.chronicle.shrunk(self.ledger.capacity, capacity)
        self.ledger.resize(capacity)
        self._reconsider()

    def _reconsider(self) -> None:
        """Something changed: let in whom there is room for, or see that room comes."""
        now = self.clock()
        for residency in self.room.overdue(now):
            self._dismiss(residency, "idle")
        overdraft = -self.ledger.free - self.room.leaving
        if overdraft > 0:
            self._make_room(self.room.shrink(overdraft, now), "shrunk")
        want = self.door.admit()
        for barred in self.door.stopped() if self.room.tenants else ():
            leaves = self.room.make_own(barred, now)
            self._make_room(leaves, "ceiling", barred.key)
        if want is not None and not self._called_off():
            spec = self.residencies[want.key].spec
            leaves = self.room.would_leave(spec, want.need, now)
            self._make_room(leaves, "room", want.key)
        again = self.room.look_again(now, want is not None)
        if again is not None and not self.closing:
            self._alarm.by(again)

    def _called_off(self) -> bool:
        """A request lacks room: loads that nobody waits for give theirs back, before
        anybody has to leave. True if any did; their end is the next look."""
        idle = [
            life
            for life in self.residencies.values()
            if life.stage is Stage.LOADING
            and not life.errand.urgent
            and life.spec.key in self.ledger
        ]
        for life in idle:
            self._abandon(life, NoRoom("its load gave way to a request's", 1.0))
        return bool(idle)

    def _make_room(self, leaves: Plan, reason: str, sake: str = "") -> None:
        if leaves.freed:
            self.room.price = leaves.price
        for key, density, rank in zip(
            leaves.victims, leaves.density, leaves.rank, strict=True
        ):
            victim = self.residencies[key]
            if victim.leases:
                raise AssertionError(
                    f"{victim!r} is in use and was chosen to leave. This is a bug."
                )
            self._dismiss(victim, reason, Verdict(sake, density, rank, leaves.ranked))

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
        self._alarm.off()
        for residency in list(self.residencies.values()):
            if residency.stage is Stage.LOADING:
                self._abandon(residency, Draining("the server is shutting down", 1.0))
            elif residency.stage is Stage.READY:
                self._dismiss(residency, "drained")
        while self.residencies:
            await asyncio.wait([r.gone for r in self.residencies.values()])
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)  # the loop itself holds tasks weakly
        task.add_done_callback(self._tasks.discard)
        return task

    def __repr__(self) -> str:
        lines = ", ".join(repr(r) for r in self.residencies.values())
        return f"{self.ledger.held}/{self.ledger.capacity} bytes | {lines or 'empty'}"
