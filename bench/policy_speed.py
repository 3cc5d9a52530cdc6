"""What a decision costs: microseconds of `plan` and of `on_request`, policy by policy.

Owns: the measurement, the same for all policies in one run. Must not: say what is good.
"""

import random
import timeit
from collections.abc import Callable

from eviction.candidates import Candidate, Candidates
from eviction.plan import plan
from eviction.policies import POLICIES
from eviction.policy import Policy

RESIDENTS = 1000
REQUESTS = 20_000


def speed() -> dict[str, float]:
    """`plan_us` at 1,000 residents, `on_request_us` among 2,000 models, and ratios."""
    found: dict[str, float] = {}
    for name, make in POLICIES.items():
        rng = random.Random(7)
        models = [f"model-{i}" for i in range(2 * RESIDENTS)]
        nbytes = [rng.randint(1_000_000, 100_000_000) for _ in models]
        weights = [1.0 / (i + 1) ** 0.9 for i in range(len(models))]
        policy = make()
        for model, n in zip(models, nbytes, strict=True):
            policy.on_request(model, 0.0, False)
            policy.on_load(model, n, 1.0, 0.0)
        for model in models[RESIDENTS:]:
            policy.on_evict(model, 0.0)
        resident = set(models[:RESIDENTS])
        drawn = rng.choices(models, weights, k=REQUESTS)
        told = _best(lambda p=policy, d=drawn, r=resident: _tell(p, d, r), 3)  # type: ignore[misc]
        found[f"on_request_us.{name}"] = told / REQUESTS
        rows = [
            Candidate(m, n, 1.0)
            for m, n in zip(models[:RESIDENTS], nbytes, strict=False)
        ]
        rng.shuffle(rows)
        candidates = Candidates.of(rows)
        found[f"plan_us.{name}"] = _best(
            lambda p=policy, c=candidates: plan(p, c, 150_000_000, 1.0),  # type: ignore[misc]
            200,
        )
    for what in ("plan_us", "on_request_us"):
        found[f"{what}.tournament_over_lru"] = (
            found[f"{what}.tournament"] / found[f"{what}.lru"]
        )
    return found


def _tell(policy: Policy, drawn: list[str], resident: set[str]) -> None:
    for model in drawn:
        policy.on_request(model, 1.0, model in resident)


def _best(work: Callable[[], object], times: int) -> float:
    """The fastest of several, in microseconds: the rest is the machine's."""
    return min(timeit.repeat(work, number=1, repeat=times)) * 1e6
