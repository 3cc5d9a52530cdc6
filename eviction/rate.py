"""Rate: expected requests x reload seconds / bytes, the rate by three moving averages.

The value density of the fractional knapsack: G. B. Dantzig, "Discrete-variable extremum
problems", Operations Research 5(2), 1957. The averages decay per request, not per
second, so that night and day look alike; they are kept forward (G. Cormode et al.,
"Forward Decay", ICDE 2009): a use adds a weight that grows with every request, so
that no other model's count has to shrink.

    on a use of m:    for each h:  w_h *= 2^(1/h);   v_h(m) += w_h
    density of m:     mean over h of  (ln 2 / h) * v_h(m) / w_h,  times c(m) / s(m)

One half-life is either too slow for a burst or too forgetful for the steady; the mean
of a short, a middle and a long one is near the best single one everywhere.

Owns: the counts. Must not: choose victims (eviction/plan.py).
"""

from collections.abc import Sequence
from itertools import repeat

from eviction.known import STRANGER, Known

HALF_LIVES = (0.5, 4.0, 32.0)
"""In requests per known model: docs/decisions/0010-policies.md."""

_LN2 = 0.6931471805599453
_RESCALE_AT = 2.0**300
_NEGLIGIBLE = 2.0**-10
"""A departed model whose longest count fell to this is forgotten."""


class Rate:
    """`known`: records to share with `lhd`, which then sees to their number."""

    def __init__(
        self,
        half_lives: tuple[float, float, float] = HALF_LIVES,
        known: dict[str, Known] | None = None,
    ) -> None:
        self._half_lives = half_lives
        self._known: dict[str, Known] = {} if known is None else known
        self._short = self._middle = self._long = 1.0  # what one use adds now

    def __repr__(self) -> str:
        return f"<Rate: {len(self._known)} known>"

    def on_request(self, model: str, now: float, resident: bool) -> None:
        """Every w_h grows, and v_h += w_h for each h."""
        known = self._known.get(model)
        if known is None:
            known = self._known[model] = Known()
        short, middle, long = self._half_lives
        step = _LN2 / len(self._known)
        self._short *= 1.0 + step / short
        self._middle *= 1.0 + step / middle
        self._long *= 1.0 + step / long
        known.short += self._short
        known.middle += self._middle
        known.long += self._long
        if self._short > _RESCALE_AT:
            self._rescale()

    def on_load(self, model: str, nbytes: int, seconds: float, now: float) -> None:
        """The size is known now. A load that nobody asked for counts as one use."""
        known = self._known.get(model)
        if known is None:
            known = self._known[model] = Known()
        if known.long == 0.0:
            known.short, known.middle = self._short, self._middle
            known.long = self._long
        known.nbytes = float(max(nbytes, 1))
        known.resident = True

    def on_evict(self, model: str, now: float) -> None:
        """The counts stay: history outlives eviction."""
        known = self._known.get(model)
        if known is not None:
            known.resident = False

    def forget(self, model: str) -> None:
        """The counts go too."""
        self._known.pop(model, None)

    def weights(self) -> tuple[float, float, float]:
        """What each of a model's three counts is worth, in requests per request."""
        n = max(len(self._known), 1)
        short, middle, long = self._half_lives
        share = _LN2 / (3.0 * n)
        return (
            share / (short * self._short),
            share / (middle * self._middle),
            share / (long * self._long),
        )

    def density(
        self, models: Sequence[str], now: float, reload_s: Sequence[float]
    ) -> Sequence[float]:
        """The mean of the three rates, times c / s."""
        short, middle, long = self.weights()
        known = map(self._known.get, models, repeat(STRANGER))
        return [
            (k.short * short + k.middle * middle + k.long * long) * c / k.nbytes
            for k, c in zip(known, reload_s, strict=True)
        ]

    def known(self) -> dict[str, Known]:
        """The records, for who shares them."""
        return self._known

    def _rescale(self) -> None:
        """Bring the weights back to 1; drop those who are gone and hardly counted."""
        short, middle, long = 1.0 / self._short, 1.0 / self._middle, 1.0 / self._long
        self._short = self._middle = self._long = 1.0
        gone = []
        for model, known in self._known.items():
            known.short *= short
            known.middle *= middle
            known.long *= long
            if not known.resident and known.long < _NEGLIGIBLE:
                gone.append(model)
        for model in gone:
            del self._known[model]


class Steady(Rate):
    """The longest average alone: for traffic that hardly changes.

    Only another way to read `rate`'s counts, which is told for both.
    """

    def __init__(self, rate: Rate) -> None:
        super().__init__(known=rate.known())
        self._rate = rate

    def weights(self) -> tuple[float, float, float]:
        """All on the long one."""
        _, _, long = self._rate.weights()
        return 0.0, 0.0, 3.0 * long
