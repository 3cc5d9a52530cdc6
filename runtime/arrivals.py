"""Arrivals: models on their way in, from the wish for one until it is there, or is not.

    begin -> stand at the door -> load, its bound booked -> settle the bytes -> READY
                    `---------------- call off, or a failure ----------------> no more

Owns: the loads under way, their tasks, and who is let to the bytes first
(`loader.turns`). Must not: choose who leaves for them; it says that something changed,
and the cache looks.
"""

import asyncio
from typing import TYPE_CHECKING, Generic

from loader.errors import ArtifactRefused, DeviceFull
from loader.manifest import ModelSpec
from loader.turns import ERRAND, Errand, Turns
from runtime.errors import Draining, NoRoom
from runtime.residency import Loading, M, Residency, Stage

if TYPE_CHECKING:
    from runtime.cache import ModelCache


class Arrivals(Generic[M]):
    """The cache's way in."""

    def __init__(self, cache: "ModelCache[M]", loader: Loading[M]) -> None:
        self._cache = cache
        self._loader = loader
        self.turns = Turns()
        self.loads = self.failed = 0
        """How many have arrived, and how many never will."""

    def begin(self, spec: ModelSpec, need: int, urgent: bool) -> Residency[M]:
        """A life begins, and the task that brings it in."""
        loop = asyncio.get_running_loop()
        residency: Residency[M] = Residency(
            spec=spec,
            since=self._cache.clock(),
            arrival=loop.create_future(),
            gone=loop.create_future(),
            errand=Errand(urgent),
        )
        self.turns.begin(residency.errand)
        # It may be that nobody is left to read a failure: no reason for a warning.
        residency.arrival.add_done_callback(lambda f: f.cancelled() or f.exception())
        self._cache.residencies[spec.key] = residency
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
            self._cache.door.hurry(residency.spec.key)
            self._cache.reconsider()

    async def _bring_in(self, spec: ModelSpec, need: int) -> M:
        ERRAND.set(self._cache.residencies[spec.key].errand)
        try:
            return await self._load_with_room(spec, need)
        except DeviceFull as full:
            # The ledger planned, the device disagreed (another process, activations).
            # Believe the device until the gauge reads again: one more try, with as
            # much again evicted.
            ledger = self._cache.ledger
            ledger.release(spec.key)
            self._cache.resize(max(ledger.held, ledger.capacity - need))
            try:
                # Bounded here: who waits has seen this load pass the door once, and
                # no longer counts its patience.
                patience = self._cache.bounds.patience
                return await self._load_with_room(spec, need, patience)
            except TimeoutError:
                raise full from None

    async def _load_with_room(
        self, spec: ModelSpec, need: int, patience: float | None = None
    ) -> M:
        door, residency = self._cache.door, self._cache.residencies[spec.key]
        want = door.stand(spec.key, need, residency.errand.urgent)
        self._cache.reconsider()
        async with asyncio.timeout(patience):
            await door.enter(want)
        try:
            residency.begun = self._cache.clock()
            model = await self._loader.load(spec)
        finally:
            door.leave(want)
        if model.nbytes > need:
            # More than was booked, which `_landed` could not settle.
            await self._cache.departures.take_back(model)
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
            if spec.key in self._cache.ledger:
                self._cache.ledger.release(spec.key)
            del self._cache.residencies[spec.key]
            if residency.stage is Stage.LOADING and not isinstance(error, Exception):
                # Not ours: somebody ends the whole event loop. Leave no waiter behind.
                error = Draining("the server is shutting down", 1.0)
            if isinstance(error, Exception):
                self._failed(residency, error)
            if residency.stage is Stage.LEAVING:
                residency.move(Stage.GONE)
        self._cache.reconsider()

    def _arrived(self, residency: Residency[M], model: M) -> None:
        spec, now = residency.spec, self._cache.clock()
        # Settle: the bound becomes the fact.
        self._cache.ledger.hold(spec.key, model.nbytes)
        residency.model = model
        waited, residency.load_s = now - residency.since, now - residency.begun
        residency.since = residency.last_use = now
        self.loads += 1
        self._cache.chronicle.loaded(residency, model, waited)
        if residency.stage is Stage.LEAVING:
            # Called off when it had already arrived: the cancel came too late.
            self._cache.departures.send_off(residency, "unwanted")
            return
        residency.move(Stage.READY)
        residency.arrival.set_result(model)

    def _failed(self, residency: Residency[M], error: Exception) -> None:
        self.failed += 1
        self._cache.chronicle.failed(residency, error)
        if residency.stage is not Stage.LEAVING:  # else nobody waits for the news
            self._cache.failures.remember(residency, error, self._cache.clock())
            residency.arrival.set_exception(error)

    def call_off(self, residency: Residency[M], why: Exception | None) -> None:
        """Call a load off; `why` is what those still waiting for it are told."""
        residency.move(Stage.LEAVING)
        if why is not None and not residency.arrival.done():
            residency.arrival.set_exception(why)
        assert residency.task is not None
        self.turns.call_off(residency.errand)
        residency.task.cancel()

    def call_off_idle(self) -> bool:
        """A request lacks room: loads that nobody waits for give theirs back, before
        anybody has to leave. True if any did; their end is the next look."""
        idle = [
            life
            for life in self._cache.residencies.values()
            if life.stage is Stage.LOADING
            and not life.errand.urgent
            and life.spec.key in self._cache.ledger
        ]
        for life in idle:
            self.call_off(life, NoRoom("its load gave way to a request's", 1.0))
        return bool(idle)
