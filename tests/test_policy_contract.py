"""One contract for every policy (eviction/policy.py, the five promises)."""

import ast
import inspect
import math
import random

import pytest

from eviction.policies import POLICIES
from eviction.policy import Policy

NAMES = sorted(POLICIES)
MODELS = [f"m{i}" for i in range(12)]


def tell_a_story(policy: Policy, seed: int, events: int = 400, asks: int = 0) -> float:
    """A small honest cache of four models drives `policy`; returns the last clock."""
    rng = random.Random(seed)
    resident: list[str] = []
    now = 0.0
    for event in range(events):
        now += rng.choice((0.0, 0.5, 3.0))
        model = MODELS[min(int(rng.expovariate(0.4)), len(MODELS) - 1)]
        policy.on_request(model, now, model in resident)
        if asks and event % asks == 0:
            policy.density(MODELS, now, [1.0 + i for i in range(len(MODELS))])
        if model in resident:
            continue
        if len(resident) == 4:
            density = policy.density(resident, now, [cost(m) for m in resident])
            victim = resident[min(range(4), key=density.__getitem__)]
            resident.remove(victim)
            policy.on_evict(victim, now)
        policy.on_load(model, nbytes(model), cost(model), now)
        resident.append(model)
    return now


def nbytes(model: str) -> int:
    return 1000 * (1 + int(model[1:]) % 5)


def cost(model: str) -> float:
    return 0.1 * (1 + int(model[1:]) % 3)


def answers(policy: Policy, now: float) -> list[float]:
    return list(policy.density(MODELS, now, [cost(m) for m in MODELS]))


@pytest.mark.parametrize("name", NAMES)
def test_the_same_story_gives_the_same_answers(name: str) -> None:
    one, two = POLICIES[name](), POLICIES[name]()
    now = tell_a_story(one, seed=1)
    tell_a_story(two, seed=1)
    assert answers(one, now) == answers(two, now)
    assert repr(one) == repr(two)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", range(3))
def test_asking_is_not_doing(name: str, seed: int) -> None:
    quiet, asked = POLICIES[name](), POLICIES[name]()
    now = tell_a_story(quiet, seed)
    tell_a_story(asked, seed, asks=7)
    assert answers(quiet, now) == answers(asked, now)
    assert answers(quiet, now) == answers(quiet, now)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("told", [0, 50])
def test_one_finite_answer_per_model_asked_known_or_not(name: str, told: int) -> None:
    policy = POLICIES[name]()
    now = tell_a_story(policy, seed=2, events=told)
    models = ["m3", "never-heard-of", "m0", "m3"]
    answer = policy.density(models, now, [0.1, 0.2, 0.3, 0.1])
    assert len(answer) == 4
    assert all(math.isfinite(a) for a in answer)
    assert answer[0] == answer[3]
    assert policy.density([], now, []) is not None
    assert len(policy.density([], now, [])) == 0


@pytest.mark.parametrize("name", NAMES)
def test_unknown_models_are_no_error(name: str) -> None:
    policy = POLICIES[name]()
    policy.on_evict("nobody", 0.0)
    policy.forget("nobody")
    policy.on_load("unasked", 0, 0.0, 0.0)
    policy.on_request("nobody", 0.0, True)
    policy.on_load("unasked", 5, 0.0, 0.0)
    assert len(policy.density(["nobody", "unasked"], 0.0, [0.0, 0.0])) == 2


@pytest.mark.parametrize("name", NAMES)
def test_forget_really_forgets(name: str) -> None:
    policy = POLICIES[name]()
    for i in range(40):
        for model in ("kept", "gone"):
            policy.on_request(model, float(i), i > 0)
            if i == 0:
                policy.on_load(model, 1000, 1.0, 0.0)
    policy.forget("gone")
    kept, gone, stranger = policy.density(
        ["kept", "gone", "stranger"], 40.0, [1.0, 1.0, 1.0]
    )
    assert gone == stranger < kept
    policy.forget("kept")
    assert len(set(policy.density(["kept", "gone", "x"], 41.0, [1.0] * 3))) == 1


@pytest.mark.parametrize("name", NAMES)
def test_the_used_outlives_the_unused(name: str) -> None:
    policy = POLICIES[name]()
    for model in ("idle", "busy"):
        policy.on_request(model, 0.0, False)
        policy.on_load(model, 1000, 1.0, 0.0)
    for i in range(200):
        policy.on_request("busy", 1.0 + i, True)
        passer_by = f"p{i}"  # pressure: ageing policies age by evictions
        policy.on_request(passer_by, 1.0 + i, False)
        policy.on_load(passer_by, 1000, 1.0, 1.0 + i)
        policy.density(["idle", "busy", passer_by], 1.0 + i, [1.0, 1.0, 1.0])
        policy.on_evict(passer_by, 1.0 + i)
    idle, busy = policy.density(["idle", "busy"], 201.0, [1.0, 1.0])
    assert idle < busy


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"lru"}))
def test_the_cost_is_the_one_asked_with(name: str) -> None:
    policy = POLICIES[name]()
    for model in ("a", "b"):
        policy.on_request(model, 0.0, False)
        policy.on_load(model, 1000, 9.0, 0.0)
    for i in range(20):
        for model in ("a", "b"):
            policy.on_request(model, 1.0 + i, True)
    a, b = policy.density(["a", "b"], 21.0, [10.0, 0.01])
    assert a > b
    a, b = policy.density(["a", "b"], 21.0, [0.01, 10.0])
    assert a < b


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"lru"}))
def test_a_byte_of_a_large_model_is_worth_less(name: str) -> None:
    policy = POLICIES[name]()
    for model, size in (("small", 1_000), ("large", 1_000_000)):
        policy.on_request(model, 0.0, False)
        policy.on_load(model, size, 1.0, 0.0)
    small, large = policy.density(["small", "large"], 1.0, [1.0, 1.0])
    assert small > large


@pytest.mark.parametrize("name", NAMES)
def test_history_of_a_long_run_stays_finite(name: str) -> None:
    policy = POLICIES[name]()
    now = tell_a_story(policy, seed=3, events=60_000)
    assert all(math.isfinite(a) for a in answers(policy, now))


@pytest.mark.parametrize("name", NAMES)
def test_no_clock_no_chance_no_io(name: str) -> None:
    policy = POLICIES[name]()
    source = inspect.getsource(inspect.getmodule(type(policy)))
    imported = {
        alias.name.split(".")[0]
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Import)
        for alias in node.names
    } | {
        (node.module or "").split(".")[0]
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom)
    }
    allowed = {"collections", "dataclasses", "itertools", "math", "eviction"}
    assert imported <= allowed | {"typing", "types"}
    assert "open(" not in source
