"""History: what a policy learnt from, kept as plain data, and told again.

Policies learn in different ways, so not what they concluded is kept but what they were
told: the last requests, and what each model weighs and costs. A new process tells it to
a new policy of any kind through a cache of names (`relive`), as the old one had it.

Owns: that record. Must not: read or write files (runtime/journal.py).
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from eviction.candidates import Candidates
from eviction.plan import plan
from eviction.policy import Policy

REQUESTS = 10_000
"""Some 0.4 s to relive with the dearest policy; as far back as its bills reach."""


@dataclass(frozen=True, slots=True)
class Fact:
    """What the last load of a model showed."""

    model: str
    nbytes: int
    load_s: float


@dataclass(frozen=True, slots=True)
class Story:
    """A history as plain data. `requests`: seconds before its end, and which fact."""

    facts: Sequence[Fact]
    requests: Sequence[tuple[float, int]]


class Remembering:
    """A policy that keeps what it was told; else it is the one it was given."""

    def __init__(self, policy: Policy, most: int = REQUESTS) -> None:
        self.policy = policy
        self._requests: deque[tuple[float, str]] = deque(maxlen=most)
        self._facts: dict[str, Fact] = {}

    def __repr__(self) -> str:
        return f"<Remembering {len(self._requests)} requests: {self.policy!r}>"

    def on_request(self, model: str, now: float, resident: bool) -> None:
        """Kept, and told on."""
        self._requests.append((now, model))
        self.policy.on_request(model, now, resident)

    def on_load(self, model: str, nbytes: int, seconds: float, now: float) -> None:
        """Its size and cost are known now."""
        self._facts[model] = Fact(model, nbytes, seconds)
        if len(self._facts) > 2 * (self._requests.maxlen or 0):
            self._forget_the_unasked()
        self.policy.on_load(model, nbytes, seconds, now)

    def on_evict(self, model: str, now: float) -> None:
        """Told on."""
        self.policy.on_evict(model, now)

    def forget(self, model: str) -> None:
        """Its fact goes, and with it its requests."""
        self._facts.pop(model, None)
        self.policy.forget(model)

    def density(
        self, models: Sequence[str], now: float, reload_s: Sequence[float]
    ) -> Sequence[float]:
        """The policy's."""
        return self.policy.density(models, now, reload_s)

    def story(self, now: float) -> Story:
        """All that is remembered; requests of models never loaded teach nothing."""
        self._forget_the_unasked()
        facts = list(self._facts.values())
        index = {fact.model: n for n, fact in enumerate(facts)}
        return Story(
            facts,
            [(now - at, index[m]) for at, m in self._requests if m in index],
        )

    def relive(self, story: Story, capacity: int, now: float) -> None:
        """Tell the policy a story that ended just now; the models are gone again."""
        cache = _Names(self, capacity)
        for ago, index in story.requests:
            cache.ask(story.facts[index], now - ago)
        cache.clear(now)

    def _forget_the_unasked(self) -> None:
        asked = {model for _, model in self._requests}
        self._facts = {m: fact for m, fact in self._facts.items() if m in asked}


class _Names:
    """A cache without bytes."""

    def __init__(self, policy: Policy, capacity: int) -> None:
        self._policy = policy
        self._capacity = capacity
        self._held = 0
        self._there: dict[str, Fact] = {}

    def ask(self, fact: Fact, now: float) -> None:
        """A request, and the load and the evictions it leads to."""
        resident = fact.model in self._there
        self._policy.on_request(fact.model, now, resident)
        if resident or fact.nbytes > self._capacity:
            return
        need = self._held + fact.nbytes - self._capacity
        if need > 0:
            self._make_room(need, now)
        self._there[fact.model] = fact
        self._held += fact.nbytes
        self._policy.on_load(fact.model, fact.nbytes, fact.load_s, now)

    def _make_room(self, need: int, now: float) -> None:
        facts = self._there.values()
        candidates = Candidates(
            [*self._there],
            [fact.nbytes for fact in facts],
            [fact.load_s for fact in facts],
        )
        for model in plan(self._policy, candidates, need, now).victims:
            self._leave(model, now)

    def clear(self, now: float) -> None:
        """Everything leaves: a new process holds nothing."""
        for model in list(self._there):
            self._leave(model, now)

    def _leave(self, model: str, now: float) -> None:
        self._held -= self._there.pop(model).nbytes
        self._policy.on_evict(model, now)
