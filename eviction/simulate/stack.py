"""LRU at every size of cache at once, in one pass over the trace.

R. L. Mattson et al., "Evaluation Techniques for Storage Hierarchies", IBM Systems
Journal 9(2), 1970. What LRU holds is always the models used last, as many as fit: a
request hits in every cache that is at least as large as its *stack distance*, here in
bytes: the model's own and those of all others asked for since its last use. Only LRU
of our policies has that property; all others need a replay a size.

The distances come from a tree of partial sums over the requests (P. M. Fenwick, "A New
Data Structure for Cumulative Frequency Tables", SPE 24(3), 1994), in which each model
stands at its last use.

Owns: the curve. Must not: be mistaken for our `lru`, whose plan spares victims that
turn out not to be needed: it loads a little less than the curve says.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eviction.simulate.trace import Trace


@dataclass(frozen=True, slots=True)
class Curve:
    """Every repeated request by its distance, ascending; first requests always miss."""

    distance: NDArray[np.int64]
    saved: NDArray[np.float64]
    """Seconds of loading that a cache of `distance[i]` bytes saves, all up to i."""
    requests: int
    cost: float

    def misses(self, budget: int) -> int:
        """Requests that would load."""
        return self.requests - int(np.searchsorted(self.distance, budget, "right"))

    def missed_cost(self, budget: int) -> float:
        """Seconds of loading."""
        hits = int(np.searchsorted(self.distance, budget, "right"))
        return self.cost - (float(self.saved[hits - 1]) if hits else 0.0)


def lru_curve(trace: Trace) -> Curve:
    """One pass, log(requests) steps each. Right for budgets that fit every model."""
    distance, ids = [], []
    size = len(trace)
    tree = [0] * (size + 1)
    last: dict[int, int] = {}
    for at, model in enumerate(trace.ids, 1):
        before, nbytes = last.get(model), trace.nbytes[model]
        if before is not None:
            others = _sum(tree, at - 1) - _sum(tree, before)
            distance.append(others + nbytes)
            ids.append(model)
            _add(tree, before, -nbytes)
        _add(tree, at, nbytes)
        last[model] = at
    return _curve(trace, distance, ids)


def _sum(tree: Sequence[int], at: int) -> int:
    """Of positions 1 to `at`."""
    total = 0
    while at:
        total += tree[at]
        at &= at - 1
    return total


def _add(tree: list[int], at: int, nbytes: int) -> None:
    size = len(tree)
    while at < size:
        tree[at] += nbytes
        at += at & -at


def _curve(trace: Trace, distance: Sequence[int], ids: Sequence[int]) -> Curve:
    reload_s = np.asarray(trace.reload_s, float)
    far = np.asarray(distance, np.int64)
    order = np.argsort(far, kind="stable")
    saved = np.cumsum(reload_s[np.asarray(ids, np.int64)[order]])
    cost = float(reload_s[np.asarray(trace.ids, np.int64)].sum())
    return Curve(far[order], saved, len(trace), cost)
