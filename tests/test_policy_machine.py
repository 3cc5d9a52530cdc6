"""State machines: each policy drives a small cache, beside a model that is told the
same and computes the slow way, from the whole story or without any short cut."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from eviction import shadow, tournament
from eviction.blend import Blend
from eviction.candidates import Candidate, Candidates
from eviction.gds import Gds
from eviction.gdsf import HALF_LIFE, Gdsf
from eviction.lhd import Lhd
from eviction.lru import Lru
from eviction.plan import plan
from eviction.policy import Policy
from eviction.rate import HALF_LIVES, Rate
from eviction.tournament import LEAD, MEMORY, Tournament

MODELS = [f"m{i}" for i in range(8)]
SIZE = {m: 100 * (1 + i % 4) for i, m in enumerate(MODELS)}
COST = {m: 0.5 + (i * 7 % 5) for i, m in enumerate(MODELS)}
BUDGET = 1000
LN2 = 0.6931471805599453


class Truth(Protocol):
    """What a policy should answer; told what happens, in the policy's own order."""

    def on_request(self, model: str, resident: bool) -> None: ...
    def on_load(self, model: str) -> None: ...
    def on_evict(self, model: str) -> None: ...
    def forget(self, model: str) -> None: ...

    def density(self, model: str) -> float: ...


class LruTruth(Truth):
    def __init__(self) -> None:
        self.uses: list[str] = []

    def on_request(self, model: str, resident: bool) -> None:
        self.uses.append(model if resident else "")

    def on_load(self, model: str) -> None:
        self.uses.append(model)

    def density(self, model: str) -> float:
        return 1.0 / (self.uses[::-1].index(model) + 1)


@dataclass
class GreedyTruth(Truth):
    """GreedyDual with L and H as printed; `count` says what a use is worth."""

    counted: bool
    level: float = 0.0
    height: dict[str, float] = field(default_factory=dict)
    story: list[tuple[int, str]] = field(default_factory=list)
    known: list[str] = field(default_factory=list)

    def _of(self, model: str) -> float:
        """f: every use so far, each faded by every request after it."""
        if not self.counted:
            return 1.0
        total, faded = 0.0, 1.0
        for there, m in reversed(self.story):
            if m == model:
                total += faded
            faded /= 1.0 + LN2 / (HALF_LIFE * there)
        return total

    def on_request(self, model: str, resident: bool) -> None:
        if model not in self.known:
            self.known.append(model)
        self.story.append((len(self.known), model))
        if resident:
            self.height[model] = self.level

    def on_load(self, model: str) -> None:
        self.height[model] = self.level

    def on_evict(self, model: str) -> None:
        worth = self.density(model)
        self.level = max(self.level, self.level + worth)
        del self.height[model]

    def forget(self, model: str) -> None:
        self.height.pop(model, None)
        self.known = [m for m in self.known if m != model]
        self.story = [(n, "" if m == model else m) for n, m in self.story]

    def density(self, model: str) -> float:
        worth = self._of(model) * COST[model] / SIZE[model]
        return self.height[model] - self.level + worth


class RateTruth(GreedyTruth):
    """The same story, faded three times."""

    def density(self, model: str) -> float:
        rates = []
        for half_life in HALF_LIVES:
            total, faded = 0.0, 1.0
            for there, m in reversed(self.story):
                if m == model:
                    total += faded
                faded /= 1.0 + LN2 / (half_life * there)
            rates.append(total * LN2 / (half_life * len(self.known)))
        return sum(rates) / 3.0 * COST[model] / SIZE[model]


class Cache(RuleBasedStateMachine):
    """A cache of names that a policy drives."""

    make: Callable[[], Policy]
    truth: Callable[[], Truth]

    def __init__(self) -> None:
        super().__init__()
        self.policy, self.model = type(self).make(), type(self).truth()
        self.resident: dict[str, Candidate] = {}
        self.now = 0.0

    @rule(model=st.sampled_from(MODELS))
    def ask(self, model: str) -> None:
        self.now += 1.0
        there = model in self.resident
        self.policy.on_request(model, self.now, there)
        self.model.on_request(model, there)
        if there:
            return
        need = SIZE[model] + sum(c.nbytes for c in self.resident.values()) - BUDGET
        candidates = Candidates.of(self.resident.values())
        for victim in plan(self.policy, candidates, need, self.now).victims:
            self.leave(victim)
        self.resident[model] = Candidate(model, SIZE[model], COST[model])
        self.policy.on_load(model, SIZE[model], COST[model], self.now)
        self.model.on_load(model)

    @rule(model=st.sampled_from(MODELS))
    def forget(self, model: str) -> None:
        self.resident.pop(model, None)
        self.policy.forget(model)
        self.model.forget(model)

    def leave(self, victim: str) -> None:
        del self.resident[victim]
        self.policy.on_evict(victim, self.now)
        self.model.on_evict(victim)

    @invariant()
    def answers_are_the_truth(self) -> None:
        models = sorted(self.resident)
        costs = [COST[m] for m in models]
        answer = self.policy.density(models, self.now, costs)
        assert list(answer) == pytest.approx([self.model.density(m) for m in models])


@dataclass
class Naive:
    """A shadow without a queue: everybody is weighed for every eviction."""

    name: str
    policy: Policy
    bill: float = 0.0
    held: dict[str, None] = field(default_factory=dict)

    def load(self, model: str, budget: int | None) -> None:
        if model in self.held:
            return
        if budget is not None and SIZE[model] <= budget:
            while sum(SIZE[m] for m in self.held) + SIZE[model] > budget:
                models = list(self.held)
                worth = list(
                    self.policy.density(models, 0.0, [COST[m] for m in models])
                )
                victim = models[worth.index(min(worth))]
                del self.held[victim]
                self.policy.on_evict(victim, 0.0)
        self.held[model] = None
        self.policy.on_load(model, SIZE[model], COST[model], 0.0)


class TournamentTruth(Truth):
    """Every expert on its own, told everything itself; bills fade as plain numbers."""

    def __init__(self) -> None:
        self.experts = [
            Naive("blend", Blend()),
            Naive("rate", Rate()),
            Naive("lhd", Lhd()),
            Naive("blend-steady", SteadyBlend()),
            Naive("rate-steady", Steadily()),
            Naive("gdsf", Gdsf()),
            Naive("gdsf-fresh", Gdsf(ghosts=False)),
            Naive("gds", Gds()),
        ]
        self.leader = self.experts[0]
        self.known: dict[str, None] = {}
        self.there: dict[str, None] = {}
        self.most, self.full, self.requests = 0, False, 0

    @property
    def budget(self) -> int | None:
        return self.most if self.full else None

    def on_request(self, model: str, resident: bool) -> None:
        for one in self.experts:
            one.policy.on_request(model, 0.0, model in one.held)
            if model not in one.held and model in self.known:
                one.bill += COST[model]
                one.load(model, self.budget)
        self.requests += 1
        if self.requests % tournament._JUDGE_EVERY == 0:
            faded = 0.5 ** (
                tournament._JUDGE_EVERY / (MEMORY * max(len(self.known), 1))
            )
            for one in self.experts:
                one.bill *= faded
            best = min(self.experts, key=lambda one: one.bill)
            if best.bill < (1.0 - LEAD) * self.leader.bill:
                self.leader = best

    def on_load(self, model: str) -> None:
        self.known[model] = self.there[model] = None
        self.most = max(self.most, sum(SIZE[m] for m in self.there))
        for one in self.experts:
            one.load(model, self.budget)

    def on_evict(self, model: str) -> None:
        del self.there[model]
        self.full = True

    def forget(self, model: str) -> None:
        if model in self.there:
            self.on_evict(model)
        self.known.pop(model, None)
        for one in self.experts:
            one.held.pop(model, None)
            one.policy.forget(model)


class Steadily(Rate):
    """`Steady` with counts of its own."""

    def weights(self) -> tuple[float, float, float]:
        _, _, long = super().weights()
        return 0.0, 0.0, 3.0 * long


class SteadyBlend(Blend):
    def __init__(self) -> None:
        super().__init__(Steadily())


class TournamentCache(Cache):
    """The same leader with the same bills at every moment."""

    policy: Tournament
    model: TournamentTruth

    def __init__(self) -> None:
        self._every = tournament._JUDGE_EVERY
        tournament._JUDGE_EVERY = 4
        super().__init__()

    def teardown(self) -> None:
        tournament._JUDGE_EVERY = self._every

    @invariant()
    def answers_are_the_truth(self) -> None:
        self.policy._tell()
        bills = {s.name: s.bill / self.policy._unit for s in self.policy._shadows}
        assert bills == pytest.approx({e.name: e.bill for e in self.model.experts})
        assert self.policy.leader == self.model.leader.name
        for one, naive in zip(self.policy._shadows, self.model.experts, strict=True):
            assert set(one._resident) == set(naive.held)


class QueueCache(TournamentCache):
    """Shadows that serve several evictions by one scan, here of four models: what they
    hold is no longer exactly the truth's, and is still what they say."""

    def __init__(self) -> None:
        self._exact_below = shadow.EXACT_BELOW
        shadow.EXACT_BELOW = 2
        super().__init__()

    def teardown(self) -> None:
        super().teardown()
        shadow.EXACT_BELOW = self._exact_below

    @invariant()
    def answers_are_the_truth(self) -> None:
        for one in self.policy._shadows:
            assert one._held == sum(nbytes for nbytes, _ in one._resident.values())
            assert set(one._came) <= set(one._resident)
            if self.model.full:
                assert one._held <= BUDGET


def machine(
    name: str, policy: Callable[[], Policy], truth: Callable[[], Truth], base=Cache
) -> type:
    made = type(
        name, (base,), {"make": staticmethod(policy), "truth": staticmethod(truth)}
    )
    made.TestCase.settings = settings(
        max_examples=25, stateful_step_count=50, deadline=None
    )
    return made.TestCase


TestLru = machine("LruCache", Lru, LruTruth)
TestGds = machine("GdsCache", Gds, lambda: GreedyTruth(counted=False))
TestGdsf = machine("GdsfCache", Gdsf, lambda: GreedyTruth(counted=True))
TestRate = machine("RateCache", Rate, lambda: RateTruth(counted=True))
TestTournament = machine("T", Tournament, TournamentTruth, TournamentCache)
TestQueues = machine("Q", Tournament, TournamentTruth, QueueCache)


def test_a_model_that_a_shadow_has_keeps_its_place_among_equals() -> None:
    """The real cache loads m7 again, which the shadow of gds never lost. m2 came after
    it and is worth exactly as much: m7 leaves first."""
    kind = type(
        "Told",
        (TournamentCache,),
        {"make": staticmethod(Tournament), "truth": staticmethod(TournamentTruth)},
    )
    cache = kind()
    try:
        for index in (3, 5, 7, 0, 2, 5, 5, 1, 4, 7, 0):
            cache.ask(model=MODELS[index])
            cache.answers_are_the_truth()
    finally:
        cache.teardown()
