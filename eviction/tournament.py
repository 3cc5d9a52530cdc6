"""Tournament: the policy that would have lost least lately drives the evictions.

No single score wins everywhere: what is best on one trace loses to LRU on another. So
several are run side by side, each on a *shadow cache* of its own: names and sizes only,
as large as the real one, evicting by its own score. Each pays for its own misses, and
the one whose recent bill is smallest leads: its density is our answer.

I. Ari et al., "ACME: Adaptive Caching Using Multiple Experts", WDAS 2002; the duel is
that of M. K. Qureshi et al., "Adaptive Insertion Policies", ISCA 2007, but with whole
shadow caches: metadata of thousands of models costs less than one of them.

    on a request:     every expert is told; whose shadow misses, pays c(m), and its
                      shadow loads m and evicts by its own density
    now and then:     bills fade (half in `MEMORY` requests per known model); whoever is
                      more than `LEAD` below the leader's bill becomes the leader
    density:          the leader's

The budget is not told but seen: a full cache holds all but a little of it, so the most
that was held lately is taken for it.

Owns: the bills and the shadows. Must not: choose the real victims (eviction/plan.py).
"""

from collections.abc import Sequence, Set
from dataclasses import dataclass

from eviction.blend import Blend
from eviction.gds import Gds
from eviction.gdsf import Gdsf
from eviction.rate import Steady
from eviction.shadow import Request, Shadow

MEMORY = 10.0
"""Half-life of a bill, in requests per known model."""

LEAD = 0.02
"""By how much a bill must undercut the leader's: a change of leader costs reloads."""

SEASON = 2000
"""Evictions after which an old maximum is let go: a budget may shrink."""

BUNDLE = 32
"""Requests that are told together: eight experts told of one request, between what else
a server does, spend more on finding their data than on writing it. Nobody asks them in
between, so no answer is another."""

_JUDGE_EVERY = 256
_RESCALE_AT = 2.0**60


@dataclass(slots=True)
class _Facts:
    """What the real cache has shown of a model."""

    nbytes: int
    reload_s: float
    resident: bool


class Tournament:
    """Starts as the blend, the best single one on the families we chose it on."""

    def __init__(self) -> None:
        # What these five learn does not depend on what they hold: told once for all.
        self._blend = blend = Blend()
        steady = Steady(blend.rate)
        self._shadows = (
            Shadow("blend", blend, told=True),
            Shadow("rate", blend.rate, told=True),
            Shadow("lhd", blend.lhd, told=True),
            Shadow("blend-steady", Blend(steady, blend.lhd), told=True),
            Shadow("rate-steady", steady, told=True),
            Shadow("gdsf", Gdsf()),
            Shadow("gdsf-fresh", Gdsf(ghosts=False)),
            Shadow("gds", Gds()),
        )
        self._leader = self._shadows[0]
        self._facts: dict[str, _Facts] = {}
        self._budget = _Budget()
        self._unit = 1.0  # what a second of reloading adds to a bill now
        self._until_judged = _JUDGE_EVERY
        self._heard: list[Request] = []

    def __repr__(self) -> str:
        self._tell()
        bills = ", ".join(f"{s.name} {s.bill / self._unit:.3g}" for s in self._shadows)
        return f"<Tournament led by {self._leader.name}: {bills}>"

    @property
    def leader(self) -> str:
        """Whose density it is at present."""
        self._tell()
        return self._leader.name

    def on_request(self, model: str, now: float, resident: bool) -> None:
        """Heard now, and told when it matters or when there is a bundle."""
        self._heard.append((model, now, resident))
        if len(self._heard) == BUNDLE:
            self._tell()

    def _tell(self) -> None:
        """What was heard, in its order."""
        heard, self._heard = self._heard, []
        models = {model for model, _, _ in heard}
        if all(shadow.has(models) for shadow in self._shadows):
            self._hit(heard, models)
            return
        for model, now, resident in heard:
            self._requested(model, now, resident)

    def _hit(self, heard: Sequence[Request], models: Set[str]) -> None:
        """Nobody misses, so nobody pays, and one expert need not wait for the other."""
        for model, now, resident in heard:
            self._blend.on_request(model, now, resident)
        for shadow in self._shadows:
            shadow.hit(heard, models)
        self._until_judged -= len(heard)
        while self._until_judged <= 0:
            late = self._until_judged
            self._judge()
            self._until_judged += late

    def _requested(self, model: str, now: float, resident: bool) -> None:
        """Every expert is told; whose shadow misses, pays."""
        self._blend.on_request(model, now, resident)
        facts = self._facts.get(model)
        for shadow in self._shadows:
            if shadow.request(model, now) or facts is None:
                continue  # of a model never loaded, neither size nor cost is known yet
            shadow.bill += facts.reload_s * self._unit
            shadow.load(model, facts.nbytes, facts.reload_s, now, self._budget.bytes)
        self._until_judged -= 1
        if self._until_judged == 0:
            self._judge()

    def on_load(self, model: str, nbytes: int, seconds: float, now: float) -> None:
        """The real load tells size and cost; shadows that could not load it do now."""
        self._tell()
        before = self._facts.get(model)
        if before is not None and before.resident:
            self._budget.left(before.nbytes)
        self._facts[model] = _Facts(nbytes, seconds, True)
        self._budget.came(nbytes)
        self._blend.on_load(model, nbytes, seconds, now)
        for shadow in self._shadows:
            shadow.load(model, nbytes, seconds, now, self._budget.bytes)

    def on_evict(self, model: str, now: float) -> None:
        """Only the real cache lost it; the shadows evict for themselves."""
        self._tell()
        self._blend.on_evict(model, now)
        facts = self._facts.get(model)
        if facts is not None and facts.resident:
            facts.resident = False
            self._budget.left(facts.nbytes)

    def forget(self, model: str) -> None:
        """By everyone."""
        self._tell()
        facts = self._facts.pop(model, None)
        if facts is not None and facts.resident:
            self._budget.left(facts.nbytes)
        self._blend.forget(model)
        for shadow in self._shadows:
            shadow.forget(model)

    def density(
        self, models: Sequence[str], now: float, reload_s: Sequence[float]
    ) -> Sequence[float]:
        """The leader's."""
        self._tell()
        return self._leader.policy.density(models, now, reload_s)

    def _judge(self) -> None:
        """Let the bills fade and see who leads."""
        self._until_judged = _JUDGE_EVERY
        self._unit *= 2.0 ** (_JUDGE_EVERY / (MEMORY * max(len(self._facts), 1)))
        if self._unit > _RESCALE_AT:
            for shadow in self._shadows:
                shadow.bill /= self._unit
            self._unit = 1.0
        best = min(self._shadows, key=lambda shadow: shadow.bill)
        if best.bill < (1.0 - LEAD) * self._leader.bill:
            self._leader = best


class _Budget:
    """The most that was held in this season or the last; endless until one leaves."""

    def __init__(self) -> None:
        self._held = 0
        self._season = 0
        self._before = 0
        self._left = 0
        self.bytes: int | None = None

    def came(self, nbytes: int) -> None:
        """A load."""
        self._held += nbytes
        self._season = max(self._season, self._held)
        if self.bytes is not None:
            self.bytes = max(self._season, self._before)

    def left(self, nbytes: int) -> None:
        """An eviction, the only sign that the cache was full."""
        self._held -= nbytes
        self._left += 1
        if self._left % SEASON == 0:
            self._before, self._season = self._season, self._held
        self.bytes = max(self._season, self._before)
