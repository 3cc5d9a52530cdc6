"""What a cache that knows the future could do: bounds from both sides.

Owns: three answers to "how far is this from the best there is". Must not: pretend to
be a policy; all of them read the whole trace first. numpy here, scipy for the LP only.

The interval form: between two requests for the same model it is kept, or not. Keeping
saves one reload and occupies its bytes at every request in between. The model being
served is resident too (*forced residency*): at point t only `budget - bytes of the one
served at t` is left for the kept ones.

    D. S. Berger, N. Beckmann, M. Harchol-Balter, "Practical Bounds on Optimal Caching
    with Variable Object Sizes", SIGMETRICS 2018 (FOO, PFOO).

- `linear_bound`: keep fractions: no cache, however clairvoyant, misses less. FOO.
- `packed_bound`: keep greedily, dearest per byte and request first: a feasible
  schedule, so the optimum is at most this.
- `Clairvoyant`: Belady's furthest next use as a policy, also weighed by cost per byte;
  feasible too, and comparable step by step (IBM Systems Journal 5(2), 1966).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eviction.simulate.trace import Trace

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Intervals:
    """Pairs (start, end) of consecutive requests for the same model, as arrays."""

    ids: Ints
    start: Ints
    end: Ints
    nbytes: Floats
    cost: Floats

    @classmethod
    def of(cls, trace: Trace, budget: int) -> "Intervals":
        """Those worth keeping; a model above the budget never is, and never served."""
        nbytes = np.asarray(trace.nbytes, float)
        cost = np.asarray(trace.reload_s, float)
        ids = np.asarray(trace.ids, np.int64)
        order = np.argsort(ids, kind="stable")
        same = np.flatnonzero(ids[order][1:] == ids[order][:-1])
        start, end = order[same], order[same + 1]
        fits = nbytes[ids[start]] <= budget
        start, end = start[fits], end[fits]
        model = ids[start]
        return cls(ids, start, end, nbytes[model], cost[model])


def _served(trace: Trace, budget: int) -> Floats:
    """Bytes of the model served at each request; 0 for one that cannot be kept."""
    served = np.asarray(trace.nbytes, float)[np.asarray(trace.ids, np.int64)]
    return np.where(served <= budget, served, 0.0)


def packed_bound(trace: Trace, budget: int) -> float:
    """PFOO-U: seconds of loading of a feasible clairvoyant schedule."""
    it = Intervals.of(trace, budget)
    total = float(np.asarray(trace.reload_s)[it.ids].sum()) if len(trace) else 0.0
    length = it.end - it.start - 1
    saved = float(it.cost[length == 0].sum())
    worth = it.cost / (it.nbytes * np.maximum(length, 1))
    held = _served(trace, budget)
    for k in np.argsort(-worth, kind="stable"):
        if not length[k]:
            continue  # nobody in between: a hit for nothing
        # An interval is as long as there are models in use, so a slice is cheap, and
        # a segment tree (the usual choice) would cost more in Python than it saves.
        between = held[it.start[k] + 1 : it.end[k]]
        if between.max() + it.nbytes[k] <= budget:
            between += it.nbytes[k]
            saved += float(it.cost[k])
    return total - saved


def linear_bound(trace: Trace, budget: int) -> float:
    """The LP bound: seconds of loading no schedule can go below (scipy, HiGHS).

    Occupancy is a variable of its own, tied by `y[t] = y[t-1] + starts - ends`: two
    entries an interval and two a request, where the plain form has one per interval
    and request in between.
    """
    from scipy.optimize import linprog
    from scipy.sparse import csr_matrix

    it = Intervals.of(trace, budget)
    total = float(np.asarray(trace.reload_s)[it.ids].sum()) if len(trace) else 0.0
    far = it.end - it.start > 1
    saved = float(it.cost[~far].sum())
    start, end = it.start[far], it.end[far]
    # In MB and with the largest saving as 1, or HiGHS' tolerances see nothing or all.
    size, unit = it.nbytes[far] / 1e6, float(it.cost.max(initial=1e-9))
    m, n = len(start), len(trace)
    if m == 0:
        return total - saved
    x, y = np.arange(m), m + np.arange(n)
    rows = np.concatenate([start + 1, end, np.arange(n), np.arange(1, n)])
    columns = np.concatenate([x, x, y, y[:-1]])
    values = np.concatenate([-size, size, np.ones(n), -np.ones(n - 1)])
    room = (budget - _served(trace, budget)) / 1e6
    solved = linprog(
        np.concatenate([-it.cost[far] / unit, np.zeros(n)]),
        A_eq=csr_matrix((values, (rows, columns)), shape=(n, m + n)),
        b_eq=np.zeros(n),
        bounds=np.stack([np.zeros(m + n), np.concatenate([np.ones(m), room])], axis=1),
        method="highs-ds",
    )
    if solved.status != 0:
        raise RuntimeError(f"HiGHS found no optimum: {solved.message}")
    return total - saved + float(solved.fun) * unit


class Clairvoyant:
    """Belady as a policy: it was given the trace and counts along while replayed."""

    def __init__(self, trace: Trace, weighed: bool = True) -> None:
        self._weighed = weighed
        self._size = dict(zip(trace.names, trace.nbytes, strict=True))
        self._next = self._next_uses(trace)
        self._next_use: dict[str, int] = {}
        self._at = -1

    @staticmethod
    def _next_uses(trace: Trace) -> list[int]:
        """For each request, when its model is asked for again; far off for never."""
        never = 1 << 60
        following = [never] * len(trace)
        seen: dict[int, int] = {}
        for i in range(len(trace) - 1, -1, -1):
            following[i] = seen.get(trace.ids[i], never)
            seen[trace.ids[i]] = i
        return following

    def on_request(self, model: str, now: float, resident: bool) -> None:
        """One step along the trace."""
        self._at += 1
        self._next_use[model] = self._next[self._at]

    def on_load(self, model: str, nbytes: int, seconds: float, now: float) -> None:
        """Nothing new: the sizes are in the trace."""

    def on_evict(self, model: str, now: float) -> None:
        """Nothing new."""

    def forget(self, model: str) -> None:
        """The future does not forget."""

    def density(
        self, models: Sequence[str], now: float, reload_s: Sequence[float]
    ) -> Sequence[float]:
        """1 / distance to the next use, times cost per byte when weighed."""
        at = self._at
        near = [1.0 / (self._next_use.get(m, 1 << 60) - at) for m in models]
        if not self._weighed:
            return near
        return [
            d * c / self._size[m]
            for d, c, m in zip(near, reload_s, models, strict=True)
        ]
