"""What a reload is believed to cost."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eviction.costs import PRIORS, Cost, Costs


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
