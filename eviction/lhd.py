"""LHD: least hit density, times cost: learn how worth falls with age, class by class.

N. Beckmann, H. Chen, A. Cidon, "LHD: Improving Cache Hit Rate by Maximizing Hit
Density", NSDI 2018.

    class of m:       log2 of the moving mean of its intervals between requests
    on a use of m:    events(class, age) += 1
    now and then:     hit density (class, age) = expected hits / expected residence
    density of m:     hit density (its class, its age) * c(m) / s(m)

Where we depart from the paper, which serves millions of keys and must sample:
- ages are counted for absent models too, so what is learnt does not depend on what was
  evicted. A model that has not come back *yet* is counted as still away, not as lost
  (E. L. Kaplan, P. Meier, "Nonparametric Estimation from Incomplete Observations",
  1958): the paper counts evictions in the place of this.
- the residence is cut where it pays best: hits per byte and request, at the best time
  to give up (J. C. Gittins, "Bandit Processes and Dynamic Allocation Indices", 1979).
  For known distributions of intervals that order is the right one.
- cost and size multiply; ages are in requests, and binned by quarter octaves.

Owns: what was learnt of intervals. Must not: choose victims (eviction/plan.py).
"""

from collections.abc import Sequence
from itertools import repeat

from eviction.known import Known

PER_OCTAVE = 4
OCTAVES = 22
AGES = OCTAVES * PER_OCTAVE
"""Age bins. Nobody is older than `OLDEST`: lessons see to it, so that an age is looked
up without a question, which is a sixth of what a density costs."""

OLDEST = (1 << OCTAVES) // 2

CLASSES = 25
"""Classes by log2 of the mean interval; the last is for models asked for once."""

LEARN_EVERY = 5
"""Requests per known model between two lessons; their events decay by `KEEP`."""

KEEP = 0.9
LEARN_AT_LEAST = 500

FORGET = 1000
"""Requests per known model after which an absent one is dropped for good."""

NEWEST = 0.3
"""Weight of the newest interval in a model's mean: classes must follow a burst."""

AGE_BIN = bytes((0, 0, 4, 6)) + b"".join(
    bytes((exponent * PER_OCTAVE + quarter,)) * (1 << (exponent - 2))
    for exponent in range(2, OCTAVES)
    for quarter in range(PER_OCTAVE)
)
"""By quarter octaves: the exponent of the age, and its next two bits."""

_EDGE = [2.0 ** (b / PER_OCTAVE) for b in range(AGES + 1)]
_ONCE = CLASSES - 1


class Lhd:
    """Events are counted at each use and turned into densities at each lesson."""

    def __init__(self, known: dict[str, Known] | None = None) -> None:
        self._known: dict[str, Known] = {} if known is None else known
        self._request = 0
        self._lesson_at = LEARN_AT_LEAST
        self._events = [[0.0] * AGES for _ in range(CLASSES)]
        # Until a class has had events: 1 / age, the density of one use that long ago.
        # Records hold on to their row, so a lesson writes into the rows.
        self._rows = [[1.0 / edge for edge in _EDGE[:-1]] for _ in range(CLASSES)]
        self.stranger = Known()
        """Stands in for a model never heard of."""

    def __repr__(self) -> str:
        return f"<Lhd: {len(self._known)} known, {self._request} requests>"

    @property
    def clock(self) -> int:
        """The request after the last one: ages are from here."""
        return self._request + 1

    def on_request(self, model: str, now: float, resident: bool) -> None:
        """An interval ends, whether the model was resident in it or not."""
        self._request = request = self._request + 1
        known = self._known.get(model)
        if known is None:
            known = self._known[model] = Known()
        if known.last == 0:
            known.kind = _ONCE
        else:
            age = request - known.last
            self._events[known.kind][AGE_BIN[age]] += 1.0
            if known.kind == _ONCE:
                known.mean = float(age)
            else:
                known.mean += NEWEST * (age - known.mean)
            known.kind = min(int(known.mean).bit_length() - 1, _ONCE - 1)
        known.row = self._rows[known.kind]
        known.last = request
        if request >= self._lesson_at:
            self._learn()

    def on_load(self, model: str, nbytes: int, seconds: float, now: float) -> None:
        """The size is known now. A load that nobody asked for counts as one use."""
        known = self._known.get(model)
        if known is None:
            known = self._known[model] = Known()
        if known.last == 0:
            known.last = max(self._request, 1)
            known.kind = _ONCE
            known.row = self._rows[_ONCE]
        known.nbytes = float(max(nbytes, 1))
        known.resident = True

    def on_evict(self, model: str, now: float) -> None:
        """Its interval goes on."""
        known = self._known.get(model)
        if known is not None:
            known.resident = False

    def forget(self, model: str) -> None:
        """Its events stay in its class: they are of the class, not of the model."""
        self._known.pop(model, None)

    def density(
        self, models: Sequence[str], now: float, reload_s: Sequence[float]
    ) -> Sequence[float]:
        """The hit density learnt for each one's class and age, times c / s."""
        clock, bins = self.clock, AGE_BIN
        known = map(self._known.get, models, repeat(self.stranger))
        return [
            k.row[bins[clock - k.last]] * c / k.nbytes
            for k, c in zip(known, reload_s, strict=True)
        ]

    def _learn(self) -> None:
        """Densities anew from the events so far; old events count less."""
        away = [[0.0] * AGES for _ in range(CLASSES)]
        oldest = self._request - max(LEARN_AT_LEAST, FORGET * len(self._known))
        self.stranger.last = self._request
        gone = []
        for model, known in self._known.items():
            if not known.resident and known.last < oldest:
                gone.append(model)
            known.last = max(known.last, self._request - OLDEST)
            if known.last:
                away[known.kind][AGE_BIN[self._request - known.last]] += 1.0
        for model in gone:
            del self._known[model]
        for kind, events in enumerate(self._events):
            if any(events):
                self._rows[kind][:] = hit_density(events, away[kind])
            self._events[kind] = [KEEP * n for n in events]
        pause = max(LEARN_AT_LEAST, LEARN_EVERY * len(self._known))
        self._lesson_at = self._request + min(pause, OLDEST - 2)


def hit_density(events: Sequence[float], away: Sequence[float]) -> list[float]:
    """At each age, hits per request of residence, given up at the best time."""
    # Kaplan-Meier: of those still away at an age, the share that returns in its bin.
    at_risk, risk = [0.0] * AGES, 0.0
    for b in range(AGES - 1, -1, -1):
        risk += events[b] + away[b]
        at_risk[b] = risk
    returned, residence, left = [0.0], [0.0], 1.0
    for b in range(AGES):
        stays = left * (1.0 - events[b] / at_risk[b]) if at_risk[b] > 0.0 else left
        returned.append(returned[-1] + left - stays)
        residence.append(
            residence[-1] + 0.5 * (left + stays) * (_EDGE[b + 1] - _EDGE[b])
        )
        left = stays
    # The best time to give up is the next corner of the curve's upper hull: walk back
    # from the last age and drop corners that a steeper way passes over.
    density, corners = [0.0] * AGES, [AGES]
    for b in range(AGES - 1, -1, -1):
        here = _slope(returned, residence, b, corners[-1])
        while len(corners) > 1:
            further = _slope(returned, residence, b, corners[-2])
            if further < here:
                break
            here = further
            corners.pop()
        density[b] = here
        corners.append(b)
    return density


def _slope(rise: Sequence[float], run: Sequence[float], a: int, b: int) -> float:
    """Of the way from a to b; 0 where nobody is left to wait for."""
    return (rise[b] - rise[a]) / (run[b] - run[a]) if run[b] > run[a] else 0.0
