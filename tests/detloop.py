"""An event loop without wall time: what is ready runs in a seeded random order, and
when nothing is ready the clock jumps to the next timer. The same seed, the same run.

It has no sockets and no threads. When nothing is ready and no timer is set, whoever
still waits waits for ever: that raises Deadlock instead of hanging.
"""

import asyncio
import random
from collections.abc import Callable


class Deadlock(Exception):
    """Nothing is ready, and nothing ever will be."""


class _Clock:
    """Stands where BaseEventLoop has its selector: asked to wait, it jumps."""

    def __init__(self, loop: "DetLoop") -> None:
        self._loop = loop

    def select(self, timeout: float | None) -> list[object]:
        if timeout is None:
            raise Deadlock
        self._loop.now += timeout
        return []


class DetLoop(asyncio.BaseEventLoop):
    def __init__(
        self, seed: int, after_each: Callable[[], None], shuffled: bool = True
    ) -> None:
        super().__init__()
        self.now = 0.0
        self.random = random.Random(seed)
        self._after_each = after_each
        self._shuffled = shuffled
        self.ambush: Callable[[], object] = lambda: None
        self.ambush_odds = 0.0
        self._selector = _Clock(self)
        self._clock_resolution = 1e-9

    def time(self) -> float:
        return self.now

    def _process_events(self, events: list[object]) -> None:
        pass

    def _write_to_self(self) -> None:
        pass

    def _run_once(self) -> None:
        # One callback a turn, picked at random, so that invariants are looked at
        # between any two steps and no order of events is taken for granted.
        ready = self._ready
        if len(ready) > 1 and self._shuffled:
            index = self.random.randrange(len(ready))
            ready.rotate(-index)
            rest = [ready.pop() for _ in range(len(ready) - 1)]
            super()._run_once()
            ready.extendleft(rest)
        else:
            super()._run_once()
        self._after_each()
        if self.ambush_odds and self.random.random() < self.ambush_odds:
            self.ambush()
