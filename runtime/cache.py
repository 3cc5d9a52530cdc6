"""The cache: which models are resident, who uses them, who comes and who leaves.

    lease (hit)    find -> READY -> use                       no await, no task
    lease (miss)   find -> nothing -> begin -> wait -> use
    bring in       door (FIFO) -> hold the bound -> load -> settle the bytes -> READY
    take out       LEAVING -> leases run out -> unload -> release -> GONE

Owns: the residencies, the leases on them, and the look at all of it whenever something
has changed. How they come and how they leave: runtime/arrivals.py and departures.py.
Must not: touch torch, NVML, storage, protobuf or the names of metrics.

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
from collections.abc import Callable
from typing import Generic

from eviction.ledger import Ledger
from eviction.policy import Policy
from eviction.spiral import Spiral
from loader.manifest import ModelSpec
from runtime.alarm import Alarm
from runtime.arrivals import Arrivals
from runtime.bounds import Bounds as Bounds
from runtime.chronicle import Chronicle
from runtime.departures import Departures
from runtime.door import Door
from runtime.errors import BackingOff, Draining
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
        self.arrivals: Arrivals[M] = Arrivals(self, loader)
        self.departures: Departures[M] = Departures(self, loader)
        self._alarm = Alarm(self.reconsider)
        self.waiting = 0
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
        return self.arrivals.begin(spec, need, urgent)

    def released(self, residency: Residency[M]) -> None:
        """The last lease of a life ended. A load nobody waits for is called off."""
        residency.last_use = now = self.clock()
        if self.bounds.idle_ttl:
            self._alarm.by(now + self.bounds.idle_ttl)
        if residency.stage is Stage.LOADING:
            self.arrivals.call_off(residency, None)
        elif self.door or self.ledger.free < 0:
            self.reconsider()

    # -- room -----------------------------------------------------------------------

    def resize(self, capacity: int) -> None:
        """The gauge's word: so much is ours now. Idle models leave if need be."""
        if capacity < self.ledger.capacity:
            self.chronicle.shrunk(self.ledger.capacity, capacity)
        self.ledger.resize(capacity)
        self.reconsider()

    def reconsider(self) -> None:
        """Something changed: let in whom there is room for, or see that room comes."""
        now = self.clock()
        for residency in self.room.overdue(now):
            self.departures.dismiss(residency, "idle")
        overdraft = -self.ledger.free - self.room.leaving
        if overdraft > 0:
            self.departures.carry_out(self.room.shrink(overdraft, now), "shrunk")
        want = self.door.admit()
        for barred in self.door.stopped() if self.room.tenants else ():
            leaves = self.room.make_own(barred, now)
            self.departures.carry_out(leaves, "ceiling", barred.key)
        if want is not None and not self.arrivals.call_off_idle():
            spec = self.residencies[want.key].spec
            leaves = self.room.would_leave(spec, want.need, now)
            self.departures.carry_out(leaves, "room", want.key)
        again = self.room.look_again(now, want is not None)
        if again is not None and not self.closing:
            self._alarm.by(again)

    # -- operators ------------------------------------------------------------------

    async def unload(self, key: str) -> None:
        """Make absent; returns when its bytes are free. Leases run out first."""
        self.failures.forget(key)
        residency = self.residencies.get(key)
        if residency is None:
            return
        if residency.stage is Stage.READY:
            self.departures.dismiss(residency, "unloaded")
        elif residency.stage is Stage.LOADING:
            name = residency.spec.name
            why = BackingOff(f"model '{name}' was unloaded while it loaded", 0.1)
            self.arrivals.call_off(residency, why)
        await asyncio.wait((residency.gone,))

    async def aclose(self) -> None:
        """Refuse new lives, call loads off, wait for leases, free it all (trap 5)."""
        self.closing = True
        self._alarm.off()
        for residency in list(self.residencies.values()):
            if residency.stage is Stage.LOADING:
                why = Draining("the server is shutting down", 1.0)
                self.arrivals.call_off(residency, why)
            elif residency.stage is Stage.READY:
                self.departures.dismiss(residency, "drained")
        while self.residencies:
            await asyncio.wait([r.gone for r in self.residencies.values()])
        await self.departures.over()

    def __repr__(self) -> str:
        lines = ", ".join(repr(r) for r in self.residencies.values())
        return f"{self.ledger.held}/{self.ledger.capacity} bytes | {lines or 'empty'}"
