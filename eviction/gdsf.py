"""GDSF: GreedyDual-Size with frequency, the frequency remembered beyond eviction.

L. Cherkasova, "Improving WWW Proxies Performance with Greedy-Dual-Size-Frequency
Caching Policy", HP Labs HPL-98-69R1, 1998; after P. Cao and S. Irani, "Cost-Aware WWW
Proxy Caching Algorithms", USENIX ITS 1997.

    on a use of m:    f(m) += 1;  H(m) = L + f(m) * c(m) / s(m)
    to make room:     v = argmin H;  L = H(v);  v leaves

Three departures, each because models are thousands and not millions of web pages:
- f is kept for every known model, resident or not, and halves every `HALF_LIFE` times
  as many requests as there are known models. Counts "since load" forget what a model
  was worth each time it leaves, and fossilise when L hardly moves.
- c is asked when a decision is made, not when a model is used: the tier a model would
  come back from changes in between. So what is stored is L at the last use.
- the answer is H - L, the credit that is left (Young's Landlord): the same order, and
  a number in seconds per byte that does not grow for ever.

Owns: the counts and L. Must not: choose victims (eviction/plan.py).
"""

from collections.abc import Sequence
from itertools import repeat

HALF_LIFE = 30.0
"""Requests per known model after which a count is worth half (flat from 10 to 100)."""

_RESCALE_AT = 2.0**60
"""Counts are stored in units of the newest use; beyond this they are scaled back."""

_NEGLIGIBLE = 2.0**-10
"""A departed model whose count fell to this is forgotten: memory stays bounded."""


class _Known:
    """One model: its count in units of `Gdsf._unit`, L at its last use, its bytes."""

    __slots__ = ("count", "floor", "nbytes", "resident")

    def __init__(self) -> None:
        self.count = 0.0
        self.floor = 0.0
        self.nbytes = float("inf")  # until loaded: no byte of it is worth anything
        self.resident = False


_UNKNOWN = _Known()


class Gdsf:
    """`ghosts=False` counts from the load on, as the paper does."""

    def __init__(self, half_life: float = HALF_LIFE, ghosts: bool = True) -> None:
        self._half_life = half_life
        self._ghosts = ghosts
        self._known: dict[str, _Known] = {}
        self._unit = 1.0  # what one use adds now; grows instead of all counts shrinking
        self._level = 0.0  # the paper's L
        self._asked: tuple[Sequence[str], Sequence[float]] = ((), ())

    def __repr__(self) -> str:
        return f"<Gdsf: {len(self._known)} known, L={self._level:.3g}>"

    def on_request(self, model: str, now: float, resident: bool) -> None:
        """f += 1; H rises from the present L."""
        known = self._known.get(model)
        if known is None:
            known = self._known[model] = _Known()
        self._unit *= 1.0 + 0.6931471805599453 / (self._half_life * len(self._known))
        known.count += self._unit
        known.floor = self._level
        if self._unit > _RESCALE_AT:
            self._rescale()

    def on_load(self, model: str, nbytes: int, seconds: float, now: float) -> None:
        """The size is known now. A load that nobody asked for counts as one use."""
        known = self._known.get(model)
        if known is None:
            known = self._known[model] = _Known()
        if known.count == 0.0:
            known.count = self._unit
        known.nbytes = float(max(nbytes, 1))
        known.floor = self._level
        known.resident = True

    def on_evict(self, model: str, now: float) -> None:
        """L rises to the H of the victim, as it was when the plan asked."""
        models, heights = self._asked
        if model in models:
            self._level = max(self._level, heights[models.index(model)])
        known = self._known.get(model)
        if known is not None:
            known.resident = False
            if not self._ghosts:
                known.count = 0.0

    def forget(self, model: str) -> None:
        """The count goes too."""
        self._known.pop(model, None)

    def density(
        self, models: Sequence[str], now: float, reload_s: Sequence[float]
    ) -> Sequence[float]:
        """H - L per model, with f and c as of now."""
        level, one = self._level, 1.0 / self._unit
        known = map(self._known.get, models, repeat(_UNKNOWN))
        credit = [
            k.floor - level + k.count * one * c / k.nbytes
            for k, c in zip(known, reload_s, strict=True)
        ]
        # A note for `on_evict`, which is told the victim but not what it would cost.
        self._asked = (tuple(models), [level + h for h in credit])
        return credit

    def _rescale(self) -> None:
        """Bring the unit back to 1 and drop those who are gone and hardly counted."""
        one = 1.0 / self._unit
        self._unit = 1.0
        for known in self._known.values():
            known.count *= one
        self._known = {
            model: known
            for model, known in self._known.items()
            if known.resident or known.count > _NEGLIGIBLE
        }
