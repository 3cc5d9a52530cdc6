"""How long a call takes, by graph and shapes: is it short enough for the event loop?

A hop to a lane and back costs more than a small model's forward (measured: 40 to 140 us
against 27 us for an MLP 64-256-256-10). So a call that has shown to be short runs where
it is asked for; all others, and all on a GPU, go to a lane.

Owns: the measured times and the bound. Must not: run anything.
"""

from cachetools import LRUCache

INLINE_S = 200e-6
"""What a call may hold the event loop up for: about what the loop spends on two
requests anyway, so no other request's wait grows by more than that."""

SEEN = 3
"""Calls to be seen in a lane first; the very first of a graph is always slow."""

KEPT = 8192
"""Shapes remembered."""

Shape = tuple[object, ...]


class Pace:
    """Moving averages of seconds a call, by graph and the shapes of its inputs."""

    def __init__(self, bound: float = INLINE_S) -> None:
        self._bound = bound
        self._times: LRUCache[Shape, tuple[int, float]] = LRUCache(KEPT)

    def told(self, shape: Shape, seconds: float) -> None:
        """A call of this shape took so long."""
        seen, mean = self._times.get(shape, (0, seconds))
        if seen == 0:
            mean = 0.0
        elif seen == 1:
            mean = seconds  # the first is not counted: it met cold caches
        else:
            mean += (seconds - mean) * 0.2
        self._times[shape] = seen + 1, mean

    def is_short(self, shape: Shape) -> bool:
        """True if a call of this shape may run on the event loop."""
        seen, mean = self._times.get(shape, (0, 0.0))
        return seen >= SEEN and mean < self._bound
