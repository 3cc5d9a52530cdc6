"""What a decision costs, policy by policy (run by bench/policy_speed.py).

Owns: what is timed, and on what: 1,000 residents among 2,000 models. Must not: assert
on times. All policies in one run, so that they compare.

    on_request   what a policy adds to every request
    plan         one choice of victims from columns that are there
    decision     the same from the cache's own books: who may leave, what each costs
"""

import asyncio
import random
from collections.abc import Iterator

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from eviction.candidates import Candidates
from eviction.costs import Costs
from eviction.ledger import Ledger
from eviction.plan import plan
from eviction.policies import POLICIES
from eviction.policy import Policy
from eviction.spiral import Spiral
from loader.manifest import FileRef, ModelSpec
from runtime.residency import Loaded, Residency, Stage
from runtime.room import Room
from runtime.tenants import Tenants

RESIDENTS = 1000
REQUESTS = 5000
NEED = 150_000_000
"""Two or three of the residents."""


def specs() -> list[ModelSpec]:
    """Twice as many as are resident."""
    return [
        ModelSpec(
            f"model-{i}", "1", FileRef("graph.json", 1, "0" * 64),
            FileRef("model.safetensors", 1, f"{i:064x}"), (), (), 0,
        )
        for i in range(2 * RESIDENTS)
    ]  # fmt: skip


SPECS = specs()
KEYS = [spec.key for spec in SPECS]


@pytest.fixture(params=list(POLICIES))
def policy(request: pytest.FixtureRequest) -> Policy:
    """One that has seen all of them, and traffic to the residents."""
    made: Policy = POLICIES[request.param]()
    rng = random.Random(7)
    for key in KEYS:
        made.on_request(key, 0.0, False)
        made.on_load(key, rng.randint(10**6, 10**8), 0.1, 0.0)
    for key in KEYS[RESIDENTS:]:
        made.on_evict(key, 0.0)
    for key in drawn(rng, 4 * REQUESTS):
        made.on_request(key, 0.0, key in KEYS[:RESIDENTS])
    return made


def drawn(rng: random.Random, count: int) -> list[str]:
    """A Zipf stream."""
    weights = [1.0 / (i + 1) ** 0.9 for i in range(len(KEYS))]
    return rng.choices(KEYS, weights, k=count)


def test_on_request(benchmark: BenchmarkFixture, policy: Policy) -> None:
    resident = set(KEYS[:RESIDENTS])
    told = [(key, key in resident) for key in drawn(random.Random(8), REQUESTS)]
    benchmark.extra_info["per"] = REQUESTS

    def tell() -> None:
        for key, there in told:
            policy.on_request(key, 1.0, there)

    benchmark(tell)


def test_plan(benchmark: BenchmarkFixture, policy: Policy) -> None:
    rng = random.Random(9)
    nbytes = [rng.randint(10**6, 10**8) for _ in range(RESIDENTS)]
    everyone = Candidates(KEYS[:RESIDENTS], nbytes, [0.1] * RESIDENTS)
    benchmark.extra_info["per"] = 1
    assert benchmark(lambda: plan(policy, everyone, NEED, 1.0)).freed >= NEED


@pytest.fixture
def room(policy: Policy) -> Iterator[Room[Loaded]]:
    loop, rng = asyncio.new_event_loop(), random.Random(9)
    ledger, costs = Ledger(1 << 40), Costs()
    lives: dict[str, Residency[Loaded]] = {}
    for spec in SPECS[:RESIDENTS]:
        life: Residency[Loaded] = Residency(
            spec, 0.0, loop.create_future(), loop.create_future(), Stage.READY
        )
        life.load_s = 0.1
        lives[spec.key] = life
        ledger.hold(spec.key, rng.randint(10**6, 10**8))
    ledger.resize(ledger.held)
    yield Room(
        policy,
        ledger,
        lives,
        Tenants(),
        Spiral(),
        lambda specs, nbytes, load_s: costs.each(
            ("disk" for _ in specs), nbytes, [spec.key for spec in specs]
        ),
    )
    loop.close()


def test_decision(benchmark: BenchmarkFixture, room: Room[Loaded]) -> None:
    benchmark.extra_info["per"] = 1
    found = benchmark(lambda: room.would_leave(SPECS[-1], NEED, 1.0))
    assert found.freed >= NEED
