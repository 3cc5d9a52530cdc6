"""The plan against brute force over all subsets."""

from collections.abc import Sequence
from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from eviction.candidates import Candidate, Candidates
from eviction.plan import Plan, Share, own_need
from eviction.plan import plan as plan_columns


def plan(policy, rows, need, now, **rest) -> Plan:
    """From a record each, as a test is read."""
    return plan_columns(policy, Candidates.of(rows), need, now, **rest)


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


def test_nobody_leaves_when_it_cannot_be_done() -> None:
    policy = Told({"a": 1.0})
    assert plan(policy, [Candidate("a", 5, 1.0)], 6, 0.0) == Plan(short=1)
    assert plan(policy, [], 6, 0.0) == Plan(short=6)
    assert plan(policy, [Candidate("a", 5, 1.0)], 0, 0.0) == Plan()
    assert policy.asked == 1, "without need, or without anyone, there is no question"


def of(model: str, **rest: float | str) -> Candidate:
    return Candidate(model, 4, 1.0, **rest)  # type: ignore[arg-type]


FLAT = Told(dict.fromkeys("abcdefgh", 1.0) | {"cheap": 0.1, "dear": 9.0})


def test_many_candidates_leave_in_the_exact_order_of_density() -> None:
    density = {f"m{i}": float((i * 7919) % 1009) for i in range(300)}
    candidates = [Candidate(m, 1, 1.0) for m in density]
    for need in (1, 5, 40, 300):
        made = plan(Told(density), candidates, need, 0.0)
        assert list(made.victims) == sorted(density, key=density.__getitem__)[:need]


def test_low_priority_leaves_before_high_whatever_it_is_worth() -> None:
    candidates = [of("cheap", priority=1), of("dear", priority=0)]
    assert plan(FLAT, candidates, 4, 0.0).victims == ("dear",)
    assert set(plan(FLAT, candidates, 5, 0.0).victims) == {"cheap", "dear"}


def test_who_has_not_stayed_as_long_as_its_load_took_leaves_last() -> None:
    young = of("cheap", since=10.0, load_s=3.0)
    made = plan(FLAT, [young, of("dear")], 4, 12.9)
    assert (made.victims, made.early) == (("dear",), 0)
    assert plan(FLAT, [young, of("dear")], 4, 13.0).victims == ("cheap",)
    forced = plan(FLAT, [young], 4, 12.9)
    assert (forced.victims, forced.early) == (("cheap",), 1)


def test_a_tenant_over_its_quota_pays_first_but_only_down_to_it() -> None:
    candidates = [of("a", tenant="rich"), of("b", tenant="rich"), of("cheap")]
    shares = {"rich": Share(held=8, quota=4)}
    assert plan(FLAT, candidates, 4, 0.0, shares=shares).victims == ("a",)
    both = plan(FLAT, candidates, 8, 0.0, shares=shares)
    assert set(both.victims) == {"a", "cheap"}


def test_a_payer_pays_before_lower_priorities_do() -> None:
    candidates = [of("a", tenant="rich", priority=5), of("cheap")]
    shares = {"rich": Share(held=8, quota=4)}
    assert plan(FLAT, candidates, 4, 0.0, shares=shares).victims == ("a",)


def test_others_do_not_push_a_tenant_below_its_floor_itself_may() -> None:
    candidates = [of("cheap", tenant="safe"), of("dear")]
    shares = {"safe": Share(held=4, floor=4)}
    assert plan(FLAT, candidates, 4, 0.0, shares=shares).victims == ("dear",)
    assert plan(FLAT, candidates, 8, 0.0, shares=shares) == Plan(short=4)
    own = plan(FLAT, candidates, 4, 0.0, shares=shares, tenant="safe")
    assert own.victims == ("cheap",)


def test_a_tenant_at_its_ceiling_owes_its_own_bytes() -> None:
    shares = {"small": Share(held=6, ceiling=8), "free": Share(held=6)}
    assert own_need(shares, "small", 2) == 0
    assert own_need(shares, "small", 5) == 3
    assert own_need(shares, "free", 50) == own_need(shares, "new", 50) == 0


TENANTS = st.sampled_from(["", "x", "y"])
GUESTS = st.lists(
    st.tuples(st.integers(1, 9), st.integers(0, 2), TENANTS, st.booleans()),
    min_size=1,
    max_size=8,
)


@given(GUESTS, st.integers(1, 40), st.integers(0, 20), st.integers(0, 20), TENANTS)
def test_with_shares_too_the_plan_is_feasible_minimal_and_keeps_floors(
    guests: list[tuple[int, int, str, bool]],
    need: int,
    floor: int,
    quota: int,
    asker: str,
) -> None:
    candidates = [
        Candidate(f"m{i}", n, 1.0, p, t, 0.0, 5.0 if young else 0.0)
        for i, (n, p, t, young) in enumerate(guests)
    ]
    density = {c.model: float(i * 37 % 11) for i, c in enumerate(candidates)}
    held = {t: sum(c.nbytes for c in candidates if c.tenant == t) for t in "xy"}
    shares = {t: Share(held[t], floor=floor, quota=quota) for t in "xy"}
    made = plan(Told(density), candidates, need, 1.0, shares=shares, tenant=asker)
    size = {c.model: c.nbytes for c in candidates}
    if made.short:
        assert made.victims == ()
        return
    freed = sum(size[v] for v in made.victims)
    assert made.freed == freed >= need
    assert all(freed - size[v] < need for v in made.victims)
    for t in set("xy") - {asker}:
        lost = sum(
            c.nbytes for c in candidates if c.model in made.victims and c.tenant == t
        )
        assert lost == 0 or held[t] - lost >= floor
