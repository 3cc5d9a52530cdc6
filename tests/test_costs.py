"""What a reload is believed to cost."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eviction.costs import OWN_MOST, PRIORS, TRUSTED, Cost, Costs


def test_before_anything_is_measured_the_priors_order_the_tiers() -> None:
    costs = Costs()
    for nbytes in (1000, 10**6, 10**8):
        told = [costs.seconds(tier, nbytes) for tier in ("host", "disk", "store")]
        assert told == sorted(told)
        assert told[0] > 0
    assert costs.seconds("tape", 10) == 0.0


@pytest.mark.parametrize("truth", [Cost(0.1, 1e-9), Cost(0.001, 1e-7)])
def test_what_is_measured_is_believed_in_the_end(truth: Cost) -> None:
    costs = Costs()
    for _ in range(400):
        for nbytes in (1000, 100 * 10**6):
            costs.told("store", nbytes, truth.of(nbytes))
    for nbytes in (1000, 10**6, 100 * 10**6):
        assert costs.seconds("store", nbytes) == pytest.approx(
            truth.of(nbytes), rel=0.1
        )
    assert costs.seconds("disk", 10**6) == PRIORS["disk"].of(10**6)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["host", "disk", "store", "new"]),
            st.integers(0, 10**12),
            st.floats(0, 1e5),
        )
    )
)
def test_a_cost_is_never_negative_and_larger_for_more(loads) -> None:
    costs = Costs()
    for load in loads:
        costs.told(*load)
    for tier in ("host", "disk", "store", "new"):
        few, many = costs.seconds(tier, 10), costs.seconds(tier, 10**9)
        assert 0 <= few <= many


def settled(tier: str, seconds: float) -> Costs:
    """One whose belief of a tier has come to rest."""
    costs = Costs()
    for index in range(400):
        costs.told(tier, 1000, seconds, f"m{index}")
    return costs


def test_a_model_that_takes_longer_than_its_bytes_is_dearer_from_that_tier() -> None:
    costs = settled("disk", 0.1)
    for _ in range(20):
        costs.told("disk", 1000, 0.3, "slow")
        costs.told("disk", 1000, 0.1, "usual")
        for index in range(8):
            costs.told("disk", 1000, 0.1, f"m{index}")
    slow, usual, new = (
        costs.seconds("disk", 1000, model) for model in ("slow", "usual", "new")
    )
    assert slow > 1.5 * usual
    assert usual == pytest.approx(new, rel=0.3)
    assert costs.seconds("store", 1000, "slow") == costs.seconds("store", 1000)
    assert costs.each(["disk", "disk"], [1000, 1000], ["slow", "new"]) == [slow, new]


def test_one_measurement_is_not_believed_beyond_measure() -> None:
    costs = settled("disk", 0.1)
    costs.told("disk", 1000, 1e6, "stuck")
    assert costs._own["disk"]["stuck"] < OWN_MOST / 2


def test_while_priors_are_mended_nothing_is_said_of_models() -> None:
    costs = Costs()
    for index in range(TRUSTED):
        costs.told("disk", 1000, 5.0, f"m{index}")
    assert costs.seconds("disk", 1000, "m0") == costs.seconds("disk", 1000, "new")


def test_models_of_long_ago_are_forgotten(monkeypatch) -> None:
    monkeypatch.setattr("eviction.costs.REMEMBERED", 10)
    costs = settled("disk", 0.1)
    assert list(costs._own["disk"]) == [f"m{index}" for index in range(390, 400)]
