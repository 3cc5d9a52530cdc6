"""What it would cost to bring a model back, by the tier it would fall to.

Owns: two moving averages a tier, seconds until the first byte and seconds a byte, and
one a tier and model: how much longer than that its loads take. Must not: time anything,
or know which tier that is.

A load whose bytes should take less than the wait before them teaches the wait, a larger
one teaches the pace; each with the other's part taken off. Before anything was measured
the priors hold (loading facts, 2).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import repeat
from types import MappingProxyType

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


OWN_WEIGHT = 0.1
"""As slow as the tier's: on a busy machine one load takes three times the last for no
reason of its own, and .3 made a server that loads all the time keep the wrong ones."""

OWN_MOST = 4.0
"""One model is believed to take a quarter to four times what its bytes take: beyond
that it was the machine."""

TRUSTED = 20
"""Loads of a tier before anything is said of a model beside it: while the priors are
still being mended, every model would seem to differ."""

REMEMBERED = 65_536
"""Models a tier, the last loaded; some 10 MiB."""

PRIORS: Mapping[str, Cost] = {
    "host": Cost(0.0003, 1 / 10e9),
    "disk": Cost(0.002, 1 / 1e9),
    "store": Cost(0.03, 1 / 300e6),
}


_NOBODY: Mapping[str, float] = MappingProxyType({})
_Known = tuple[float, float, Mapping[str, float]]
"""Of a tier: wait, pace, and by model."""


class Costs:
    """What is believed of each tier."""

    def __init__(self, priors: Mapping[str, Cost] = PRIORS) -> None:
        self._believed = dict(priors)
        self._loads: dict[str, int] = {}
        self._own: dict[str, dict[str, float]] = {}

    def believed(self) -> Mapping[str, Cost]:
        """By tier, as plain data."""
        return dict(self._believed)

    def believe(self, known: Mapping[str, Cost]) -> None:
        """What another process had measured; only of tiers we know, if it can be."""
        for tier, cost in known.items():
            if tier in self._believed and min(cost.wait, cost.pace) >= 0.0:
                self._believed[tier] = cost

    def told(self, tier: str, nbytes: int, seconds: float, model: str = "") -> None:
        """A load of `nbytes` from `tier` took `seconds`."""
        self._loads[tier] = loads = self._loads.get(tier, 0) + 1
        if model and loads > TRUSTED:
            self._told_of(model, tier, seconds, self.seconds(tier, nbytes))
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

    def seconds(self, tier: str, nbytes: int, model: str = "") -> float:
        """What a load would take; 0.0 from a tier nobody knows."""
        return self.each((tier,), (nbytes,), (model,))[0]

    def each(
        self, tiers: Iterable[str], nbytes: Iterable[int], models: Iterable[str]
    ) -> list[float]:
        """The same of many at once: a decision asks it of every resident."""
        nothing: _Known = (0.0, 0.0, _NOBODY)
        known: dict[str, _Known] = {
            tier: (cost.wait, cost.pace, self._own.get(tier, _NOBODY))
            for tier, cost in self._believed.items()
        }
        return [
            (wait + pace * n) * own.get(model, 1.0)
            for (wait, pace, own), n, model in zip(
                map(known.get, tiers, repeat(nothing)), nbytes, models, strict=True
            )
        ]

    def _told_of(self, model: str, tier: str, seconds: float, expected: float) -> None:
        """By how much it differs from its tier, as that is believed just now."""
        if expected <= 0.0:
            return
        own = self._own.setdefault(tier, {})
        factor = min(max(seconds / expected, 1.0 / OWN_MOST), OWN_MOST)
        old = own.pop(model, 1.0)
        own[model] = old + OWN_WEIGHT * (factor - old)
        if len(own) > REMEMBERED:
            del own[next(iter(own))]


def _step(old: float, new: float) -> float:
    return old + WEIGHT * (max(new, FLOOR * old) - old)
