"""Prefetch: what the recent past says comes next is fetched before it is asked for.

Owns: when to look ahead, one guess at a time, and calling one off that a request has
overtaken. Must not: know how the past speaks (eviction/foresight.py), or take anything
from a request: the bytes have memory of their own (loader/ahead.py), and their chunks
wait while anything urgent is under way (loader/turns.py).
"""

import asyncio
import contextlib
import math
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

import structlog

from eviction.foresight import Foresight, Hunch
from eviction.policy import Policy
from loader.ahead import Ahead
from loader.errors import LoadFailed
from loader.manifest import ModelSpec
from loader.turns import Errand, Turns

log = structlog.get_logger()

TICK_S = 1.0
"""Rhythms are looked at that often; who follows whom, at every request."""

AT_ONCE = 64
"""Requests heard and not yet thought about, at most: what is older is no news."""


class Listening:
    """A policy that lets somebody hear the requests; else it is the one given."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.heard: Callable[[str, float], None] = lambda model, now: None

    def __repr__(self) -> str:
        return f"<Listening: {self.policy!r}>"

    def on_request(self, model: str, now: float, resident: bool) -> None:
        """Told on."""
        self.heard(model, now)
        self.policy.on_request(model, now, resident)

    def on_load(self, model: str, nbytes: int, seconds: float, now: float) -> None:
        """Told on."""
        self.policy.on_load(model, nbytes, seconds, now)

    def on_evict(self, model: str, now: float) -> None:
        """Told on."""
        self.policy.on_evict(model, now)

    def forget(self, model: str) -> None:
        """Told on."""
        self.policy.forget(model)

    def density(
        self, models: Sequence[str], now: float, reload_s: Sequence[float]
    ) -> Sequence[float]:
        """The policy's."""
        return self.policy.density(models, now, reload_s)


@dataclass(frozen=True, slots=True)
class World:
    """What a guess has to know. `wanted`: it may be fetched (it is neither on the
    device, nor coming, nor a copy away already)."""

    spec: Callable[[str], ModelSpec | None]
    wanted: Callable[[ModelSpec], bool]
    clock: Callable[[], float]


class Prefetch:
    """One task, one fetch at a time."""

    def __init__(self, ahead: Ahead, turns: Turns, world: World) -> None:
        self._ahead = ahead
        self._turns = turns
        self._world = world
        self._foresight = Foresight()
        self._news: deque[str] = deque(maxlen=AT_ONCE)
        self._looked = -math.inf
        self._wake = asyncio.Event()
        self._fetching: tuple[str, Errand, asyncio.Task[None]] | None = None

    def heard(self, model: str, now: float) -> None:
        """A request, on its way to a lease: be quick."""
        self._foresight.told(model, now)
        self._news.append(model)
        self._wake.set()
        if self._fetching is not None and self._fetching[0] == model:
            self._call_off()  # it is being loaded for the request now

    async def run(self) -> None:
        """Until cancelled."""
        try:
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(TICK_S):
                        await self._wake.wait()
                self._wake.clear()
                news = list(self._news)
                self._news.clear()
                for hunch in self._hunches(news):
                    await self._follow(hunch)
        finally:
            self._call_off()
            if self._fetching is not None:
                await asyncio.gather(self._fetching[2], return_exceptions=True)

    def _hunches(self, news: Sequence[str]) -> list[Hunch]:
        now = self._world.clock()
        found = [
            hunch
            for model in reversed(news)
            for hunch in self._foresight.following(model, now)
        ]
        if now - self._looked >= TICK_S:  # over all models: not at every request
            self._looked = now
            found += self._foresight.due(now)
        return found

    async def _follow(self, hunch: Hunch) -> None:
        """Fetch it, if that makes sense."""
        spec, now = self._world.spec(hunch.model), self._world.clock()
        if spec is None or hunch.until <= now or not self._world.wanted(spec):
            return
        if not self._ahead.has_room(spec.weights.size, now):
            return
        errand = Errand(urgent=False)
        task = asyncio.create_task(self._ahead.bring(spec, errand, hunch.until))
        self._fetching = hunch.model, errand, task
        await asyncio.wait((task,))
        self._fetching = None
        error = None if task.cancelled() else task.exception()
        if isinstance(error, LoadFailed | TimeoutError):
            log.info("not prefetched", model=spec.name, reason=str(error))
        elif error is not None:
            log.error("prefetch failed", model=spec.name, exc_info=error)

    def _call_off(self) -> None:
        if self._fetching is not None:
            _, errand, task = self._fetching
            self._turns.call_off(errand)
            task.cancel()


@contextlib.asynccontextmanager
async def prefetching(
    listening: Listening, ahead: Ahead, turns: Turns, world: World
) -> AsyncIterator[None]:
    """Looks ahead for as long as the block lasts."""
    prefetch = Prefetch(ahead, turns, world)
    listening.heard = prefetch.heard
    task = asyncio.create_task(prefetch.run())
    try:
        yield
    finally:
        listening.heard = lambda model, now: None
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
