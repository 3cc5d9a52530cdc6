"""Whether a store is near: how soon its answers begin, of the quickest lately.

Owns: that number, and when it is worth a request of its own. Must not: know how to ask,
or what follows from it.

Answers of large ranges begin late from the nearest store while eight of them are on
their way. So where nothing small is loaded that would tell, one byte is asked for
before a large file is.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

from loader.errors import LoadFailed

NEAR_S = 10e-3
"""A store whose quickest answers begin within this is near: there one stream is as fast
as the wire or the disk behind it, and what more of them cost is the cores' (200 MB from
a SeaweedFS beside us: 1.35 times a single stream in 8 ranges, 1.18 in 3)."""

FORGET = 0.05
"""How much of a slower answer is believed: most are slow because of others."""

FORGET_SOME = 0.002
"""The same of those that were asked for with others: so a store that is near no more is
looked at again some day."""

TIMES = 3
"""Small answers that one look takes at most: the first connects."""

LOOK_S = 0.25
"""And seconds."""

AGAIN_S, LATEST_S = 60.0, 3600.0
"""Seconds until one that was far is looked at again, twice as long each time."""


class Nearness:
    """Of one store. Until an answer is heard it counts as far. `clock`: in seconds."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._quickest = NEAR_S
        self._again = 0.0
        self._wait = AGAIN_S

    @property
    def near(self) -> bool:
        """The store is: see NEAR_S."""
        return self._quickest < NEAR_S

    def began(self, seconds: float, alone: bool = True) -> None:
        """An answer of the store's began so long after it was asked for. Not `alone`:
        others were asked for with it, so a slow one says little."""
        believed = FORGET if alone else FORGET_SOME
        slower = self._quickest + (seconds - self._quickest) * believed
        self._quickest = min(seconds, slower)

    async def look(self, ask: Callable[[], Awaitable[None]]) -> None:
        """Have something small asked for, if that was not done lately and the store is
        not known to be near. An answer that does not come is nobody's failure; all are
        waited for LOOK_S at most."""
        now = self._clock()
        if self.near or now < self._again:
            return
        self._again = now + self._wait
        self._wait = min(2 * self._wait, LATEST_S)
        with suppress(LoadFailed, TimeoutError):
            async with asyncio.timeout(LOOK_S):
                for _ in range(TIMES):
                    asked = self._clock()
                    await ask()
                    self.began(self._clock() - asked)
                    if self.near:
                        self._wait = AGAIN_S
                        return
