"""LRU: the one unused for longest leaves first; blind to size and cost.

D. D. Sleator, R. E. Tarjan, "Amortized efficiency of list update and paging rules",
CACM 28(2), 1985. The baseline every figure of ours is a ratio to.

Owns: the order of last uses. Must not: look at `now` (equal clock readings would tie;
a count of events never does).
"""

from collections.abc import Sequence
from itertools import repeat


class Lru:
    """Density is 1 / (events since the last use): right as a rank, not as a price."""

    def __init__(self) -> None:
        self._event = 0
        self._last_use: dict[str, int] = {}  # of residents only

    def __repr__(self) -> str:
        return f"<Lru: {len(self._last_use)} residents, {self._event} events>"

    def on_request(self, model: str, now: float, resident: bool) -> None:
        """A use of a resident makes it the youngest."""
        self._event += 1
        if resident:
            self._last_use[model] = self._event

    def on_load(self, model: str, nbytes: int, seconds: float, now: float) -> None:
        """A load is a use."""
        self._event += 1
        self._last_use[model] = self._event

    def on_evict(self, model: str, now: float) -> None:
        """LRU remembers nothing of the departed."""
        self._last_use.pop(model, None)

    def forget(self, model: str) -> None:
        """As an eviction: there is nothing else to drop."""
        self._last_use.pop(model, None)

    def density(
        self, models: Sequence[str], now: float, reload_s: Sequence[float]
    ) -> Sequence[float]:
        """One over the age in events; 0 for a model that is not known."""
        after = self._event + 1
        last = map(self._last_use.get, models, repeat(-1))
        return [1.0 / (after - use) if use > 0 else 0.0 for use in last]
