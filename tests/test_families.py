"""The drawn traffic of the policy benchmark is what it says, and the same each time."""

import pytest

from bench.families import DISK, FAMILIES, RAM, SERVEGEN, Fleet
from bench.policies import plain_lru
from eviction.lru import Lru
from eviction.simulate.replay import replay
from eviction.simulate.trace import Trace

DRAWN = sorted(set(FAMILIES) - {"servegen"})


@pytest.mark.parametrize("name", DRAWN)
def test_a_family_is_drawn_by_its_seed(name: str) -> None:
    one, same, other = (FAMILIES[name](seed) for seed in (1, 1, 2))
    assert one == same
    assert list(one.ids) != list(other.ids)
    assert list(one.times) == sorted(one.times)
    assert 55_000 <= len(one) <= 130_000
    assert min(one.nbytes) >= 1_000_000
    assert max(one.nbytes) <= 2_000_000_000


def test_servegen_keeps_its_arrivals_and_draws_its_fleet() -> None:
    if not SERVEGEN.exists():
        pytest.skip("shared/traces is absent")
    one, other = FAMILIES["servegen"](0), FAMILIES["servegen"](1)
    assert len(one) == 388_245
    assert list(one.ids) == list(other.ids)
    assert list(one.nbytes) != list(other.nbytes)


def test_a_nearer_tier_is_faster() -> None:
    fleet = Fleet(200, 3)
    both = zip(fleet.reload_s(RAM), fleet.reload_s(DISK), strict=True)
    assert all(near < far for near, far in both)


def test_plain_lru_differs_from_ours_only_by_the_spared() -> None:
    equal = Trace(
        "t",
        [0.0] * 60,
        [i * 7 % 11 for i in range(60)],
        list("abcdefghijk"),
        [5] * 11,
        [1.0] * 11,
    )
    assert plain_lru(equal, 30) == replay(equal, Lru(), 30).missed_cost
