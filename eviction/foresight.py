"""Foresight: what the recent past says is asked for next.

    succession  who comes within a few requests after this model? The probability graph
                of J. Griffioen and R. Appleton, "Reducing File System Latency using a
                Predictive Approach", USENIX Summer 1994: an edge A -> B counts how
                often B followed A within the reach; B is foreseen when that share of
                A's requests is above a least chance.
    rhythm      who comes at regular intervals, and is due? Only where intervals vary
                little: M. Shahrad et al., "Serverless in the Wild", USENIX ATC 2020.

Owns: those counts, bounded. Must not: fetch, or know what is resident, sizes or costs.
"""

from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import takewhile

REACH = 4
"""Requests after A in which B still follows from it."""

LEAST = 0.4
"""Of A's requests, the share that B must have followed."""

SEEN = 4
"""Requests (or intervals) before anything is concluded."""

SUCCESSORS = 16
"""Edges kept of a model; the weakest goes."""

FADE_AT = 64
"""Requests of a model after which its counts are halved: what held last week fades."""

STEADY = 0.3
"""Standard deviation of a rhythm's intervals, as a share of their mean, at most."""

LEAD_S = 5.0
"""How long before its time, and after, a model of a rhythm is due; and two standard
deviations on both sides."""

HOLD_S = 30.0
"""How long one who follows is waited for."""

REMEMBERED = 4096
"""Models; who was not asked for longest is forgotten."""


@dataclass(frozen=True, slots=True)
class Hunch:
    """`model` is thought to be asked for before `until`."""

    model: str
    chance: float
    until: float


@dataclass(slots=True)
class Past:
    """What is known of one model."""

    last: float
    requests: float = 0.0
    after: dict[str, float] = field(default_factory=dict)
    intervals: int = 0
    mean: float = 0.0
    spread: float = 0.0
    """Mean square of the intervals' distance from the mean."""

    def came(self, now: float, again: bool) -> None:
        """It is asked for; `again`: right after it was, so that it counts as once to
        whoever follows."""
        interval = now - self.last
        self.last = now
        self.requests += not again
        if self.requests >= FADE_AT:
            self.requests /= 2
            self.after = {m: n / 2 for m, n in self.after.items() if n >= 1.0}
        if interval > 0.0:
            self.intervals += 1
            weight = max(1.0 / self.intervals, 0.1)
            off = interval - self.mean
            self.mean += weight * off
            self.spread = (1.0 - weight) * (self.spread + weight * off * off)

    def followed_by(self, model: str) -> None:
        """It came within the reach."""
        self.after[model] = self.after.get(model, 0.0) + 1.0
        if len(self.after) > SUCCESSORS:
            del self.after[min(self.after, key=self.after.__getitem__)]

    def due(self, model: str, now: float) -> Hunch | None:
        """That it comes now, if it has a rhythm."""
        if self.intervals < SEEN or self.spread > (STEADY * self.mean) ** 2:
            return None
        slack = LEAD_S + 2.0 * self.spread**0.5
        expected = self.last + self.mean
        # Who comes every few seconds is always due, and never away for long.
        if self.mean <= slack or abs(now - expected) > slack:
            return None
        return Hunch(model, LEAST, expected + slack)


class Foresight:
    """Told of every request; asked now and then."""

    def __init__(self) -> None:
        self._past: OrderedDict[str, Past] = OrderedDict()
        self._recent: deque[str] = deque(maxlen=REACH)

    def __repr__(self) -> str:
        return f"<Foresight: {len(self._past)} models>"

    def told(self, model: str, now: float) -> None:
        """A request for `model`."""
        past = self._past.get(model)
        if past is None:
            past = self._past[model] = Past(now)
            if len(self._past) > REMEMBERED:
                self._past.popitem(last=False)
        # Asked again at once it does not follow, nor is it followed, once more.
        again = bool(self._recent) and self._recent[-1] == model
        past.came(now, again)
        self._past.move_to_end(model)
        if again:
            return
        # Back to when it came last: whoever was before that has had it follow already.
        for earlier in takewhile(model.__ne__, reversed(self._recent)):
            if earlier in self._past:
                self._past[earlier].followed_by(model)
        self._recent.append(model)

    def forget(self, model: str) -> None:
        """It is gone for good."""
        self._past.pop(model, None)

    def following(self, model: str, now: float) -> list[Hunch]:
        """Those who come after it, the likeliest first."""
        past = self._past.get(model)
        if past is None or past.requests < SEEN:
            return []
        found = [
            Hunch(other, min(1.0, n / past.requests), now + HOLD_S)
            for other, n in past.after.items()
        ]
        likely = (hunch for hunch in found if hunch.chance >= LEAST)
        return sorted(likely, key=lambda hunch: (-hunch.chance, hunch.model))

    def due(self, now: float) -> Iterator[Hunch]:
        """Those whose rhythm says that they come now."""
        for model, past in self._past.items():
            hunch = past.due(model, now)
            if hunch is not None:
                yield hunch
