"""Where the touched bytes of a lazily backed slab are that nobody uses.

Owns: finding the place of a block that touches the fewest bytes for the first time: the
kernel clears each of those, 0.2 ms for 2 MiB at best and 5 ms where a hypervisor has to
find the memory first, and whoever else wants that core waits. Must not: touch memory,
or remember anything.

With room for a quarter of 100 models of 1 to 50 MB, three of four loaded bytes were
such bytes while blocks took the smallest hole; one of five are, and these may be had
from elsewhere (loader/trades.py).
"""

from bisect import bisect_right


class Touched:
    """What blocks have left behind in a slab, for finding where most of it is."""

    def __init__(self, left: list[tuple[int, int]]) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._before = [0]
        for start, end in sorted(left):
            if self._ends and self._ends[-1] == start:
                self._ends[-1] = end
                self._before[-1] += end - start
                continue
            self._starts.append(start)
            self._ends.append(end)
            self._before.append(self._before[-1] + end - start)

    def ranges(self) -> list[tuple[int, int]]:
        """(start, end) of each, in order; no two of them touch."""
        return list(zip(self._starts, self._ends, strict=True))

    def not_of(self, start: int, end: int) -> list[tuple[int, int]]:
        """What of `[start, end)` was never touched."""
        found, at = [], start
        for index in range(bisect_right(self._ends, start), len(self._starts)):
            if self._starts[index] >= end:
                break
            if self._starts[index] > at:
                found.append((at, self._starts[index]))
            at = self._ends[index]
        if at < end:
            found.append((at, end))
        return found

    def _below(self, at: int) -> int:
        """Touched bytes below an address."""
        index = bisect_right(self._starts, at)
        over = max(0, self._ends[index - 1] - at) if index else 0
        return self._before[index] - over

    def spot(self, start: int, end: int, need: int, at: int) -> tuple[int, int]:
        """(bytes not touched yet, where): the best place in a hole; `at` of equals."""
        last = end - need
        first = bisect_right(self._ends, start)
        behind = bisect_right(self._starts, end)
        spots = [at, start, last]
        spots += [s for s in self._starts[first:behind] if start < s < last]
        spots += [e - need for e in self._ends[first:behind] if start < e - need < last]
        fresh = [need - self._below(s + need) + self._below(s) for s in spots]
        least = min(fresh)
        return least, spots[fresh.index(least)]
