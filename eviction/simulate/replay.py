"""Replay: the same policy objects over a trace, loads taking no time.

Owns: the miss ratios. Must not: judge them. A miss costs `reload_s` of its model once;
a model larger than the whole budget is never kept, and counts as a miss each time.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from eviction.candidates import Candidates
from eviction.plan import plan
from eviction.policy import Policy
from eviction.simulate.trace import Trace

PROGRESS_EVERY = 4096

N = TypeVar("N", int, float)


@dataclass(frozen=True, slots=True)
class Misses:
    """What a replay counted, and the same over the whole trace for the ratios."""

    requests: int
    misses: int
    nbytes: int
    missed_bytes: int
    cost: float
    missed_cost: float
    evictions: int

    @property
    def object_ratio(self) -> float:
        """Misses per request."""
        return self.misses / self.requests if self.requests else 0.0

    @property
    def byte_ratio(self) -> float:
        """Missed bytes per requested byte."""
        return self.missed_bytes / self.nbytes if self.nbytes else 0.0

    @property
    def cost_ratio(self) -> float:
        """Seconds of loading over those a cache of nothing would need."""
        return self.missed_cost / self.cost if self.cost else 0.0


def replay(
    trace: Trace,
    policy: Policy,
    budget: int,
    progress: Callable[[int], None] | None = None,
) -> Misses:
    """Every request in order; `progress` is told now and then how many are done."""
    everyone = list(zip(trace.names, trace.nbytes, trace.reload_s, strict=True))
    resident: dict[str, tuple[str, int, float]] = {}
    free = budget
    requested = [0] * len(everyone)
    missed = [0] * len(everyone)
    evictions = 0
    for i, (now, m) in enumerate(zip(trace.times, trace.ids, strict=True)):
        if progress is not None and not i % PROGRESS_EVERY:
            progress(i)
        it = model, nbytes, reload_s = everyone[m]
        requested[m] += 1
        if model in resident:
            policy.on_request(model, now, True)
            continue
        missed[m] += 1
        policy.on_request(model, now, False)
        if nbytes > budget:
            continue
        if nbytes > free:
            columns = zip(*resident.values(), strict=True)
            made = plan(policy, Candidates(*columns), nbytes - free, now)
            for victim in made.victims:
                del resident[victim]
                policy.on_evict(victim, now)
            evictions += len(made.victims)
            free += made.freed
        free -= nbytes
        resident[model] = it
        policy.on_load(model, nbytes, reload_s, now)
    return Misses(
        requests=len(trace),
        misses=sum(missed),
        nbytes=_dot(requested, trace.nbytes),
        missed_bytes=_dot(missed, trace.nbytes),
        cost=_dot(requested, trace.reload_s),
        missed_cost=_dot(missed, trace.reload_s),
        evictions=evictions,
    )


def _dot(counts: Sequence[int], each: Sequence[N]) -> N:
    """Sum over models, in the order of ids."""
    return sum((n * x for n, x in zip(counts, each, strict=True)), start=each[0] * 0)
