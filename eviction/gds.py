"""GreedyDual-Size with cost, which is Landlord with a full refresh.

P. Cao, S. Irani, "Cost-Aware WWW Proxy Caching Algorithms", USENIX ITS 1997; N. E.
Young, "On-Line File Caching", Algorithmica 33(3), 2002: cost at most k / (k - h + 1)
times that of the best clairvoyant cache of h bytes, k our bytes over the smallest
model's. The only policy here with a worst-case guarantee for our exact problem.

    on a use of m:    H(m) = L + c(m) / s(m)
    to make room:     v = argmin H;  L = H(v);  v leaves

The cost is asked at decision time, and the answer is H - L: see eviction/gdsf.py.

Owns: L at each resident's last use. Must not: count.
"""

from collections.abc import Sequence
from itertools import repeat

_ABSENT = (0.0, float("inf"))


class Gds:
    """Credit by model: full at each use, taxed evenly by every eviction."""

    def __init__(self) -> None:
        self._level = 0.0  # the paper's L
        self._held: dict[str, tuple[float, float]] = {}  # model -> L at use, bytes
        self._asked: tuple[Sequence[str], Sequence[float]] = ((), ())

    def __repr__(self) -> str:
        return f"<Gds: {len(self._held)} residents, L={self._level:.3g}>"

    def on_request(self, model: str, now: float, resident: bool) -> None:
        """H rises from the present L."""
        held = self._held.get(model)
        if held is not None:
            self._held[model] = (self._level, held[1])

    def on_load(self, model: str, nbytes: int, seconds: float, now: float) -> None:
        """A load is a use."""
        self._held[model] = (self._level, float(max(nbytes, 1)))

    def on_evict(self, model: str, now: float) -> None:
        """L rises to the H of the victim, as it was when the plan asked."""
        models, heights = self._asked
        if model in models:
            self._level = max(self._level, heights[models.index(model)])
        self._held.pop(model, None)

    def forget(self, model: str) -> None:
        """Without moving L: nobody was evicted for room."""
        self._held.pop(model, None)

    def density(
        self, models: Sequence[str], now: float, reload_s: Sequence[float]
    ) -> Sequence[float]:
        """H - L per model, with c as of now."""
        level = self._level
        held = map(self._held.get, models, repeat(_ABSENT))
        credit = [
            floor - level + c / nbytes
            for (floor, nbytes), c in zip(held, reload_s, strict=True)
        ]
        # A note for `on_evict`, which is told the victim but not what it would cost.
        self._asked = (tuple(models), [level + h for h in credit])
        return credit
