"""What it would cost to bring a model back, by the tier it would fall to.

Owns: two moving averages a tier, seconds until the first byte and seconds a byte. Must
not: time anything, or know which tier that is.

A load whose bytes should take less than the wait before them teaches the wait, a larger
one teaches the pace; each with the other's part taken off. Before anything was measured
the priors hold (loading facts, 2).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import repeat

WEIGHT = 0.1
"""Of a new measurement; the last twenty make nine tenths of what is believed."""

FLOOR = 0.2
"""A moving average never falls below this share of itself in one step: a reading that
is all noise (a load faster than its own wait) must not make a tier look free."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds before the first byte, seconds for each."""

    wait: float
    pace: float

    def of(self, nbytes: int) -> float:
        """Seconds for so many bytes."""
        return self.wait + self.pace * nbytes


PRIORS: Mapping[str, Cost] = {
    "host": Cost(0.0003, 1 / 10e9),
    "disk": Cost(0.002, 1 / 1e9),
    "store": Cost(0.03, 1 / 300e6),
}


class Costs:
    """What is believed of each tier."""

    def __init__(self, priors: Mapping[str, Cost] = PRIORS) -> None:
        self._believed = dict(priors)

    def believed(self) -> Mapping[str, Cost]:
        """By tier, as plain data."""
        return dict(self._believed)

    def believe(self, known: Mapping[str, Cost]) -> None:
        """What another process had measured; only of tiers we know, if it can be."""
        for tier, cost in known.items():
            if tier in self._believed and min(cost.wait, cost.pace) >= 0.0:
                self._believed[tier] = cost

    def told(self, tier: str, nbytes: int, seconds: float) -> None:
        """A load of `nbytes` from `tier` took `seconds`."""
        now = self._believed.get(tier)
        if now is None:
            self._believed[tier] = Cost(seconds, 0.0)
        elif now.pace * nbytes <= now.wait:
            self._believed[tier] = Cost(
                _step(now.wait, seconds - now.pace * nbytes), now.pace
            )
        else:
            self._believed[tier] = Cost(
                now.wait, _step(now.pace, (seconds - now.wait) / nbytes)
            )

    def seconds(self, tier: str, nbytes: int) -> float:
        """What a load would take; 0.0 from a tier nobody knows."""
        believed = self._believed.get(tier)
        return 0.0 if believed is None else believed.of(nbytes)

    def each(self, tiers: Iterable[str], nbytes: Iterable[int]) -> list[float]:
        """The same of many at once: a decision asks it of every resident."""
        known = {name: (cost.wait, cost.pace) for name, cost in self._believed.items()}
        free = repeat((0.0, 0.0))
        return [
            wait + pace * n
            for (wait, pace), n in zip(map(known.get, tiers, free), nbytes, strict=True)
        ]


def _step(old: float, new: float) -> float:
    return old + WEIGHT * (max(new, FLOOR * old) - old)
