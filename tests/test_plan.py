"""The plan against brute force over all subsets."""

from collections.abc import Sequence
from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from eviction.plan import Candidate, Plan, plan


class Told:
    """A policy whose densities are given."""

    def __init__(self, density: dict[str, float]) -> None:
        self._density = density
        self.asked = 0

    def on_request(self, model: str, now: float, resident: bool) -> None: ...
    def on_load(self, model: str, nbytes: int, seconds: float, now: float) -> None: ...
    def on_evict(self, model: str, now: float) -> None: ...
    def forget(self, model: str) -> None: ...

    def density(
        self, models: Sequence[str], now: float, reload_s: Sequence[float]
    ) -> Sequence[float]:
        self.asked += 1
        assert len(models) == len(reload_s)
        return [self._density[m] for m in models]


RESIDENTS = st.lists(
    st.tuples(st.integers(0, 9), st.sampled_from([0.0, 0.5, 1.0, 2.0, 7.0])),
    max_size=7,
)


@given(RESIDENTS, st.integers(-3, 40))
def test_against_brute_force(residents: list[tuple[int, float]], need: int) -> None:
    candidates = [Candidate(f"m{i}", n, 1.0) for i, (n, _) in enumerate(residents)]
    density = {f"m{i}": d for i, (_, d) in enumerate(residents)}
    size = {c.model: c.nbytes for c in candidates}
    made = plan(Told(density), candidates, need, 0.0)

    total = sum(size.values())
    if need <= 0:
        assert made == Plan()
        return
    if total < need:
        assert made == Plan(short=need - total)
        return
    assert made.short == 0
    assert set(made.victims) <= set(size)
    assert len(set(made.victims)) == len(made.victims)
    assert made.freed == sum(size[v] for v in made.victims) >= need
    for fewer in range(len(made.victims)):
        for some in combinations(made.victims, fewer):
            if fewer == len(made.victims) - 1:
                assert sum(size[v] for v in some) < need, "a victim could stay"
    order = [density[v] for v in made.victims]
    assert order == sorted(order)
    assert made.lost == sum(density[v] * size[v] for v in made.victims)
    assert made.price == (made.lost / made.freed if made.freed else 0.0)


@given(RESIDENTS, st.integers(1, 40))
def test_whoever_stays_is_dearer_or_was_spared(
    residents: list[tuple[int, float]], need: int
) -> None:
    candidates = [Candidate(f"m{i}", n, 1.0) for i, (n, _) in enumerate(residents)]
    density = {f"m{i}": d for i, (_, d) in enumerate(residents)}
    made = plan(Told(density), candidates, need, 0.0)
    if not made.victims:
        return
    worst = max(density[v] for v in made.victims)
    for c in candidates:
        if c.model not in made.victims and density[c.model] < worst:  # spared
            assert (
                sum(k.nbytes for k in candidates if density[k.model] <= worst)
                >= need + c.nbytes
            )


def test_the_cheapest_bytes_leave_first() -> None:
    candidates = [Candidate("dear", 4, 1.0), Candidate("cheap", 4, 1.0)]
    made = plan(Told({"dear": 2.0, "cheap": 1.0}), candidates, 3, 0.0)
    assert made.victims == ("cheap",)
    assert (made.freed, made.lost, made.price) == (4, 4.0, 1.0)


def test_a_small_cheap_one_is_spared_when_the_big_one_must_go_anyway() -> None:
    candidates = [Candidate("small", 1, 1.0), Candidate("big", 8, 1.0)]
    made = plan(Told({"small": 0.1, "big": 0.5}), candidates, 8, 0.0)
    assert made.victims == ("big",)


def test_equal_densities_leave_in_the_order_given() -> None:
    candidates = [Candidate(m, 1, 1.0) for m in "cab"]
    made = plan(Told(dict.fromkeys("abc", 1.0)), candidates, 2, 0.0)
    assert made.victims == ("c", "a")


def test_nobody_leaves_and_nobody_is_asked_when_it_cannot_be_done() -> None:
    policy = Told({"a": 1.0})
    assert plan(policy, [Candidate("a", 5, 1.0)], 6, 0.0) == Plan(short=1)
    assert plan(policy, [], 6, 0.0) == Plan(short=6)
    assert plan(policy, [Candidate("a", 5, 1.0)], 0, 0.0) == Plan()
    assert policy.asked == 0
