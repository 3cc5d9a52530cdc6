"""Departures: models on their way out, from being sent away until their bytes are free.

    LEAVING -> leases run out -> unload -> release -> GONE

Owns: the tasks that unload, each a task of the cache's and nobody's child (trap 3 of
runtime/cache.py). Must not: choose who leaves (runtime/room.py).
"""

import asyncio
import contextvars
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Generic

from eviction.plan import Plan
from loader.turns import ERRAND
from runtime.decisions import NO_VERDICT, Verdict
from runtime.residency import Loading, M, Residency, Stage

if TYPE_CHECKING:
    from runtime.cache import ModelCache


class Departures(Generic[M]):
    """The cache's way out."""

    def __init__(self, cache: "ModelCache[M]", loader: Loading[M]) -> None:
        self._cache = cache
        self._loader = loader
        self._tasks: set[asyncio.Task[None]] = set()
        self.evictions = 0

    def __len__(self) -> int:
        """Unloads under way."""
        return len(self._tasks)

    def carry_out(self, leaves: Plan, reason: str, sake: str = "") -> None:
        """Send away whom a plan has chosen, for `sake`: all in one breath (trap 2)."""
        if leaves.freed:
            self._cache.room.price = leaves.price
        for key, density, rank in zip(
            leaves.victims, leaves.density, leaves.rank, strict=True
        ):
            victim = self._cache.residencies[key]
            if victim.leases:
                raise AssertionError(
                    f"{victim!r} is in use and was chosen to leave. This is a bug."
                )
            self.dismiss(victim, reason, Verdict(sake, density, rank, leaves.ranked))

    def dismiss(
        self, residency: Residency[M], reason: str, verdict: Verdict = NO_VERDICT
    ) -> None:
        """A resident model leaves."""
        residency.move(Stage.LEAVING)
        self.send_off(residency, reason, verdict)

    def send_off(
        self, residency: Residency[M], reason: str, verdict: Verdict = NO_VERDICT
    ) -> None:
        """Who is LEAVING and has a model gives its bytes back."""
        leaving = self._cache.room.candidate(residency)
        self._cache.room.leaving += leaving.nbytes
        self._cache.chronicle.leaves(residency, reason, leaving, verdict)
        self._spawn(self._take_out(residency, leaving.nbytes, reason))

    async def _take_out(
        self, residency: Residency[M], nbytes: int, reason: str
    ) -> None:
        await residency.emptied()
        key, model = residency.spec.key, residency.model
        assert model is not None
        residency.model = None
        await self._loader.unload(model)
        self._cache.room.leaving -= nbytes
        self._cache.ledger.release(key)
        del self._cache.residencies[key]
        residency.move(Stage.GONE)
        self.evictions += 1
        self._cache.chronicle.gone(residency, nbytes, reason)
        self._cache.reconsider()

    async def take_back(self, model: M) -> None:
        """Unload what never was resident; returns when its bytes are free."""
        await asyncio.wait((self._spawn(self._loader.unload(model)),))

    async def over(self) -> None:
        """Until nobody is on the way out."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        # On no errand of whoever's turn it is: a load that is called off would take
        # the copies of its errand with it, these among them.
        context = contextvars.copy_context()
        context.run(ERRAND.set, None)
        task = asyncio.get_running_loop().create_task(work, context=context)
        self._tasks.add(task)  # the loop itself holds tasks weakly
        task.add_done_callback(self._tasks.discard)
        return task
