"""A lease: the right to use one model until the lease ends.

Owns: taking, waiting and giving back, with the caller's deadline. Must not: load, evict
or decide anything; it asks the cache.
"""

import asyncio
from types import TracebackType
from typing import TYPE_CHECKING, Generic, TypeVar

from loader.manifest import ModelSpec
from runtime.engine import Temperature
from runtime.errors import DeadlinePassed, Draining, QueueFull
from runtime.residency import M, Residency, Stage

if TYPE_CHECKING:
    from runtime.cache import ModelCache

T = TypeVar("T")


class Lease(Generic[M]):
    """`async with` it. `temperature` tells afterwards how the model was met."""

    __slots__ = (
        "_cache", "_deadline", "_limit", "_residency", "_spec", "_urgent",
        "temperature",
    )  # fmt: skip

    def __init__(
        self,
        cache: "ModelCache[M]",
        spec: ModelSpec,
        deadline: float | None,
        urgent: bool = True,
    ) -> None:
        self._cache = cache
        self._spec = spec
        self._deadline = deadline
        self._urgent = urgent
        self._limit = 0.0
        self._residency: Residency[M] | None = None
        self.temperature: Temperature = "hit"

    async def __aenter__(self) -> M:
        cache, key = self._cache, self._spec.key
        residency = cache.taken(key)
        if residency is None:
            now = cache.clock()
            cache.policy.on_request(key, now, False)
            residency = await self._wait(now)
            residency.uses += 1
            residency.last_use = now
        self._residency = residency
        assert residency.model is not None
        return residency.model

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        residency = self._residency
        assert residency is not None
        self._cache.give_back(residency)

    async def _wait(self, now: float) -> Residency[M]:
        """Join the load in progress, or begin one, and wait; gives it with our lease.

        A loop, because the model may be on its way out when we ask: its bytes must be
        free before its next life begins.
        """
        cache = self._cache
        if cache.waiting >= cache.bounds.max_waiting:
            raise QueueFull(f"{cache.waiting} requests wait for models already", 1.0)
        self._limit = now + cache.bounds.patience
        if self._deadline is not None:
            self._limit = self._deadline
        cache.waiting += 1
        try:
            while True:
                if cache.closing:
                    raise Draining("the server is shutting down", 1.0)
                self.temperature = "wait"
                residency = cache.find(self._spec.key)
                if residency is None:
                    self.temperature = "miss"
                    residency = cache.begin(self._spec, self._urgent)
                if residency.stage is not Stage.LEAVING:
                    return await self._arrival(residency)
                await self._until(residency.gone, residency)
        finally:
            cache.waiting -= 1

    async def _arrival(self, residency: Residency[M]) -> Residency[M]:
        residency.take()  # a waiter is a lease from this moment (trap 1)
        if self._urgent:
            self._cache.arrivals.hurry(residency)
        try:
            await self._until(residency.arrival, residency)
        except BaseException:
            self._cache.give_back(residency)
            raise
        return residency

    async def _until(self, future: asyncio.Future[T], residency: Residency[M]) -> T:
        """The future's result by our limit. Our leaving never cancels the future."""
        cache = self._cache
        left = max(0.0, self._limit - cache.clock())
        done, _ = await asyncio.wait((future,), timeout=left)
        if done:
            return future.result()
        name = self._spec.name
        if self._deadline is not None:
            raise DeadlinePassed(f"model '{name}' was not ready within the deadline")
        if residency.stage is Stage.LOADING and self._spec.key not in cache.door:
            # Past the door: patience is for room. The load has bounds of its own.
            await asyncio.wait((future,))
            return future.result()
        refusal = cache.room.none_for(self._spec, cache.bounds.patience)
        raise cache.chronicle.refused(self._spec, refusal)
