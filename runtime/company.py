"""Do requests for a model come several in one turn of the event loop?

If they do, each waits for the end of the turn, and what came in it runs as one call. If
they do not, waiting for the end of a turn is a future and a lap of the loop for
nothing, and a request runs at once. Nobody can know beforehand what else a turn will
bring; but traffic is like it was a moment ago.

    alone       run at once; now and then look whether more came in the same turn
    expected    wait for the end of the turn; when nobody shares a call, back to alone

Owns: that guess. Must not: hold requests (runtime/batch.py) or know models.
"""

from collections.abc import Callable

LOOK_EVERY = 16
"""Requests between two looks while they come alone, and fewer than so many again: a
look costs a lap of the loop, and so many requests of a burst may run one by one before
it is noticed."""

LOOK_SELDOM = 1024
"""And between two looks after it has turned out, again and again, that what comes
together is for different models."""

LONELY = 4
"""Turns in which nobody shared a call before a request runs at once again."""


class Company:
    """The guess. `soon` calls back in the loop's next lap."""

    def __init__(self, soon: Callable[[Callable[[], None]], object]) -> None:
        self._soon = soon
        self.expected = False
        """True if a request should wait for the end of its turn."""
        self._every = LOOK_EVERY
        self._left = LOOK_EVERY
        self._drift = 0
        self._looking = False
        self._more = 0
        self._lonely = 0

    def alone(self) -> None:
        """A request is run at once."""
        if self._looking:
            self._more += 1
            return
        self._left -= 1
        if self._left <= 0:
            self._left = self._next()
            self._looking, self._more = True, 0
            self._soon(self._looked)

    def _looked(self) -> None:
        """The turn in which we looked is over."""
        self._looking = False
        if self._more:
            self.expected, self._lonely = True, 0

    def turned(self, requests: int, calls: int) -> None:
        """A turn ended: so many requests waited for its end, and took so many calls."""
        if requests > calls:
            self._lonely, self._every = 0, LOOK_EVERY
            return
        self._lonely += 1
        if self._lonely >= LONELY:
            self.expected = False
            self._every = min(self._every * 2, LOOK_SELDOM)
            self._left = self._next()

    def _next(self) -> int:
        """Requests until the next look. Another number each time: 32 callers whose
        requests come together are else looked at for ever at the last one, after which
        none comes."""
        self._drift = (self._drift + 1) % LOOK_EVERY
        return self._every + self._drift
