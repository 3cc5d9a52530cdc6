"""The simulator's engine: replay, waits and bounds against small truths."""

import random
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eviction.candidates import Candidate
from eviction.gdsf import Gdsf
from eviction.lru import Lru
from eviction.policies import POLICIES
from eviction.simulate.bounds import Clairvoyant, linear_bound, packed_bound
from eviction.simulate.replay import replay
from eviction.simulate.stack import lru_curve
from eviction.simulate.trace import Trace, TraceRefused
from eviction.simulate.waits import Machine, simulate_waits


def trace_of(
    ids: list[int], nbytes: list[int], costs: list[float], step: float = 1.0
) -> Trace:
    names = [f"m{i}" for i in range(len(nbytes))]
    return Trace("t", [step * i for i in range(len(ids))], ids, names, nbytes, costs)


def a_trace(seed: int, requests: int = 3000, models: int = 60) -> Trace:
    rng = random.Random(seed)
    nbytes = [rng.randint(10, 300) for _ in range(models)]
    costs = [rng.uniform(0.1, 3.0) for _ in range(models)]
    weights = [1.0 / (i + 1) for i in range(models)]
    ids = rng.choices(range(models), weights, k=requests)
    return trace_of(ids, nbytes, costs, 0.05)


def cheapest_by_search(trace: Trace, budget: int) -> float:
    """The best there is, over all sets kept after each request."""
    best: dict[frozenset[int], float] = {frozenset(): 0.0}
    for m in trace.ids:
        after: dict[frozenset[int], float] = {}
        for held, cost in best.items():
            paid = cost + (0.0 if m in held else trace.reload_s[m])
            pool = sorted(held | {m})
            for keep in product((False, True), repeat=len(pool)):
                kept = frozenset(x for x, k in zip(pool, keep, strict=True) if k)
                # Forced residency: the one served is there besides the others kept.
                if sum(trace.nbytes[x] for x in kept | {m}) <= budget:
                    after[kept] = min(after.get(kept, 1e18), paid)
        best = after
    return min(best.values())


TINY = st.tuples(
    st.lists(st.integers(0, 3), min_size=1, max_size=9),
    st.lists(st.integers(1, 4), min_size=4, max_size=4),
    st.lists(st.sampled_from([0.5, 1.0, 3.0]), min_size=4, max_size=4),
    st.integers(4, 9),
)


@given(TINY)
@settings(max_examples=60, deadline=None)
def test_the_best_there_is_lies_between_the_bounds(
    tiny: tuple[list[int], list[int], list[float], int],
) -> None:
    ids, nbytes, costs, budget = tiny
    trace = trace_of(ids, nbytes, costs)
    best = cheapest_by_search(trace, budget)
    assert linear_bound(trace, budget) <= best + 1e-6
    assert best <= packed_bound(trace, budget) + 1e-6
    for policy in (Clairvoyant(trace), Clairvoyant(trace, weighed=False)):
        assert best <= replay(trace, policy, budget).missed_cost + 1e-6


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_no_policy_beats_the_linear_bound(name: str) -> None:
    trace = a_trace(1)
    for share in (0.05, 0.2):
        budget = int(share * trace.total_bytes)
        lower, upper = linear_bound(trace, budget), packed_bound(trace, budget)
        assert lower <= upper
        assert lower <= replay(trace, POLICIES[name](), budget).missed_cost


@given(
    st.lists(st.integers(0, 5), max_size=60),
    st.lists(st.integers(1, 9), min_size=6, max_size=6),
    st.integers(9, 60),
)
def test_one_pass_counts_what_lru_counts_at_every_size(
    ids: list[int], nbytes: list[int], budget: int
) -> None:
    trace = trace_of(ids, nbytes, [0.5, 1.0, 2.0, 4.0, 8.0, 16.0])
    held: list[int] = []  # the last used at the end
    misses, cost = 0, 0.0
    for m in ids:
        if m in held:
            held.remove(m)
        else:
            misses, cost = misses + 1, cost + trace.reload_s[m]
            while sum(nbytes[x] for x in [*held, m]) > budget:
                held.pop(0)
        held.append(m)
    curve = lru_curve(trace)
    assert curve.misses(budget) == misses
    assert curve.missed_cost(budget) == pytest.approx(cost)


def test_everything_fits_and_only_first_requests_miss() -> None:
    trace = a_trace(2)
    first = sum(trace.reload_s[m] for m in set(trace.ids))
    misses = replay(trace, Lru(), trace.total_bytes)
    assert misses.misses == len(set(trace.ids))
    assert misses.evictions == 0
    assert misses.missed_cost == pytest.approx(first)
    assert packed_bound(trace, trace.total_bytes) == pytest.approx(first)
    assert linear_bound(trace, trace.total_bytes) == pytest.approx(first)


def test_a_replay_is_the_same_twice_and_counts_what_it_says() -> None:
    trace = a_trace(3)
    told: list[int] = []
    one = replay(trace, Gdsf(), 700, told.append)
    assert one == replay(trace, Gdsf(), 700)
    assert told == [0]
    assert one.requests == len(trace)
    assert one.nbytes == sum(trace.nbytes[m] for m in trace.ids)
    assert one.cost == pytest.approx(sum(trace.reload_s[m] for m in trace.ids))
    assert 0 < one.object_ratio < 1
    assert 0 < one.byte_ratio < 1
    assert 0 < one.cost_ratio < 1


def test_a_model_above_the_budget_misses_each_time_and_harms_nobody() -> None:
    trace = trace_of([0, 1, 0, 1, 0], [2, 50], [1.0, 5.0])
    misses = replay(trace, Lru(), 10)
    assert (misses.misses, misses.missed_cost, misses.evictions) == (3, 11.0, 0)


def test_an_empty_trace_has_no_ratios_to_divide() -> None:
    trace = trace_of([], [1], [1.0])
    assert replay(trace, Lru(), 10).cost_ratio == 0.0
    assert linear_bound(trace, 10) == packed_bound(trace, 10) == 0.0
    assert simulate_waits(trace, Lru(), Machine(10)).mean == 0.0


@pytest.mark.parametrize(
    ("ids", "nbytes", "costs", "says"),
    [
        ([2], [1, 1], [1.0, 1.0], "without a size"),
        ([0], [0], [1.0], "above 0"),
        ([0], [1], [-1.0], "not below"),
        ([0], [1], [1.0, 2.0], "differ in number"),
    ],
)
def test_a_wrong_trace_is_refused(
    ids: list[int], nbytes: list[int], costs: list[float], says: str
) -> None:
    with pytest.raises(TraceRefused, match=says):
        trace_of(ids, nbytes, costs)


def test_requests_that_come_during_a_load_wait_for_the_rest_of_it() -> None:
    trace = trace_of([0, 0, 0, 0], [1], [2.5])
    waits = simulate_waits(trace, Lru(), Machine(10, run_s=0.01))
    assert list(waits.seconds) == [2.5, 1.5, 0.5, 0.0]
    assert (waits.loads, waits.refused, waits.mean) == (1, 0, 1.125)
    assert (waits.quantile(0.5), waits.quantile(1.0)) == (1.5, 2.5)


def test_loads_queue_for_a_slot_and_for_room_that_a_run_holds() -> None:
    trace = trace_of([0, 1], [6, 6], [1.0, 1.0], 0.0)
    two_slots = simulate_waits(trace, Lru(), Machine(12, slots=2, run_s=3.0))
    assert sorted(two_slots.seconds) == [1.0, 1.0]
    one_slot = simulate_waits(trace, Lru(), Machine(12, slots=1, run_s=3.0))
    assert sorted(one_slot.seconds) == [1.0, 2.0]
    no_room = simulate_waits(trace, Lru(), Machine(6, slots=2, run_s=3.0))
    assert sorted(no_room.seconds) == [1.0, 5.0]  # loaded, ran 3 s, then made room


def test_who_falls_into_the_host_tier_comes_back_from_it() -> None:
    trace = trace_of([0, 1, 0], [6, 6], [4.0, 4.0], 10.0)
    far = simulate_waits(trace, Lru(), Machine(6, run_s=0.1))
    assert list(far.seconds) == [4.0, 4.0, 4.0]
    near = Machine(6, run_s=0.1, near_bytes=6, near_s=(0.5, 0.5))
    assert list(simulate_waits(trace, Lru(), near).seconds) == [4.0, 4.0, 0.5]


def test_a_faster_clock_brings_requests_closer() -> None:
    trace = trace_of([0, 0], [1], [2.0], 4.0)
    assert list(simulate_waits(trace, Lru(), Machine(1)).seconds) == [2.0, 0.0]
    faster = simulate_waits(trace, Lru(), Machine(1, speed=4.0))
    assert list(faster.seconds) == [2.0, 1.0]


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_every_request_is_answered_or_refused(name: str) -> None:
    trace = a_trace(4)
    machine = Machine(
        900, slots=2, near_bytes=1500, near_s=[c / 10 for c in trace.reload_s]
    )
    waits = simulate_waits(trace, POLICIES[name](), machine)
    assert len(waits.seconds) + waits.refused == len(trace)
    assert min(waits.seconds) >= 0.0
    again = simulate_waits(trace, POLICIES[name](), machine)
    assert list(again.seconds) == list(waits.seconds)


def test_a_candidate_is_cheap_to_make_by_name() -> None:
    assert Candidate("a", 1, 2.0) == Candidate(model="a", nbytes=1, reload_s=2.0)


@pytest.fixture(scope="module")
def unit_cost() -> Trace:
    rng = random.Random(5)
    ids = rng.choices(range(300), [1.0 / (i + 1) ** 0.8 for i in range(300)], k=20_000)
    return trace_of(ids, [1] * 300, [1.0] * 300)


@pytest.mark.parametrize("name", ["LRU", "GDSF", "Belady"])
def test_libcachesim_agrees(name: str, unit_cost: Trace) -> None:
    """A simulator of others, in C, counts the same misses on unit sizes and costs."""
    other = pytest.importorskip("libcachesim", reason="libcachesim is not installed")
    for budget in (15, 60):
        cache = getattr(other, name)(cache_size=budget)
        theirs = 0
        following = Clairvoyant(unit_cost)._next
        for i, m in enumerate(unit_cost.ids):
            request = other.Request()
            request.obj_id, request.obj_size, request.clock_time = m, 1, i
            request.next_access_vtime = min(following[i], 1 << 40)
            theirs += not cache.get(request)
        ours = {
            "LRU": Lru,
            "GDSF": lambda: Gdsf(half_life=1e12, ghosts=False),
            "Belady": lambda: Clairvoyant(unit_cost, weighed=False),
        }[name]
        counted = replay(unit_cost, ours(), budget).misses
        assert counted == pytest.approx(theirs, rel=0.01)


def test_times_and_ids_are_pairs_and_a_trace_reads_as_a_sentence() -> None:
    with pytest.raises(TraceRefused, match="2 times for 1 requests"):
        Trace("t", [0.0, 1.0], [0], ["a"], [1], [1.0])
    trace = trace_of([0, 0, 1], [2**29, 2**29], [1.0, 1.0])
    assert repr(trace) == "<Trace t: 3 requests for 2 models, 1.0 GiB>"
    assert len(trace.head(2)) == 2
    assert trace.head(2).names == trace.names


def test_what_is_larger_than_the_budget_is_refused_at_once() -> None:
    waits = simulate_waits(trace_of([0, 1], [5, 50], [1.0, 1.0]), Lru(), Machine(10))
    assert (waits.refused, list(waits.seconds), waits.loading_s) == (1, [1.0], 1.0)


def test_a_wanted_model_stays_in_the_host_tier_while_it_waits_for_room() -> None:
    trace = trace_of([0, 1, 0], [6, 6], [4.0, 4.0], 4.5)
    machine = Machine(6, run_s=3.0, near_bytes=6, near_s=(0.5, 0.5))
    # 1 comes at 4.5, waits for 0's run until 7, loads until 11 and runs until 14.
    # 0 comes back at 9 and has the host tier's 0.5 s to wait after that.
    assert list(simulate_waits(trace, Lru(), machine).seconds) == [4.0, 6.5, 5.5]
