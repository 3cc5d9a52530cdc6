"""Counting on the hot path: plain numbers, no lock, turned into metrics when scraped.

Owns: distributions and counts by a bounded word. Must not: know a metric's name.

The library's own metric objects take a lock for every increment: 0.5 us each, and half
a dozen a request. These are written by the event loop only, and read from the scrape's
thread without stopping it: a reader may miss the very last event, never more.
"""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

OTHER = "_other"
"""The label of all that has none of its own."""

MANY_WORDS = 32
"""Different words of one kind. All of them are written in our own code; a bug that let
a client's text become one must not become a leak."""


class Histogram:
    """How often, how much in total, and how it is spread over `bounds`."""

    __slots__ = ("_bounds", "_counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        # One more than bounds: what is above the last.
        self._counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        """One more event."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self.total += value

    @property
    def count(self) -> int:
        """Events so far."""
        return sum(self._counts)

    def buckets(self) -> list[tuple[str, int]]:
        """(upper bound, events at or below it), as the exposition format wants them."""
        counts = self._counts.copy()  # one step for the interpreter: adds up
        bounds = [*map(str, self._bounds), "+Inf"]
        return list(zip(bounds, accumulate(counts), strict=True))


class Words:
    """Counts by word: an outcome, a reason. Bounded, whatever it is given."""

    __slots__ = ("_counts",)

    def __init__(self, *expected: str) -> None:
        # A series that is there from the start, at 0, shows its first event in rate().
        self._counts = dict.fromkeys(expected, 0)

    def add(self, word: str, amount: int = 1) -> None:
        """`amount` more of `word`."""
        if word not in self._counts and len(self._counts) >= MANY_WORDS:
            word = OTHER
        self._counts[word] = self._counts.get(word, 0) + amount

    def read(self) -> dict[str, int]:
        """As of now."""
        return self._counts.copy()
