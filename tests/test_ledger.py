"""The ledger against a dict that is summed anew at each step."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eviction.ledger import Ledger, Overbooked

KEYS = st.sampled_from("abcd")
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("hold"), KEYS, st.integers(-2, 60)),
        st.tuples(st.just("release"), KEYS, st.just(0)),
        st.tuples(st.just("resize"), st.just(""), st.integers(-2, 120)),
    ),
    max_size=40,
)


@given(st.integers(0, 100), STEPS)
def test_it_agrees_with_a_sum(capacity: int, steps: list[tuple[str, str, int]]) -> None:
    ledger, truth, peak = Ledger(capacity), {}, 0
    for verb, key, n in steps:
        before = dict(truth)
        more = n - truth.get(key, 0)
        if verb == "hold":
            bad = n < 0 or (more > 0 and sum(truth.values()) + more > capacity)
            truth[key] = n
        elif verb == "release":
            bad = key not in truth
            truth.pop(key, None)
        else:
            bad = n < 0
            capacity = capacity if bad else n
        if bad:
            truth = before
        call = {
            "hold": lambda key=key, n=n: ledger.hold(key, n),
            "release": lambda key=key: ledger.release(key),
            "resize": lambda n=n: ledger.resize(n),
        }[verb]
        if bad:
            with pytest.raises(Overbooked, match="This is a bug"):
                call()
        else:
            call()
        peak = max(peak, sum(truth.values()))
        assert ledger.held == sum(truth.values())
        assert ledger.free == capacity - sum(truth.values())
        assert ledger.capacity == capacity
        assert ledger.peak == peak
        assert all(ledger.size(k) == truth.get(k, 0) for k in "abcd")
        assert all((k in ledger) == (k in truth) for k in "abcd")
        assert len(ledger) == len(truth)


def test_settling_changes_a_booking_in_both_directions() -> None:
    ledger = Ledger(100)
    ledger.hold("a", 60)
    ledger.hold("a", 90)
    assert (ledger.held, ledger.free) == (90, 10)
    ledger.hold("a", 50)
    assert (ledger.held, ledger.free, ledger.peak) == (50, 50, 90)


def test_after_the_capacity_shrank_bytes_can_only_come_back() -> None:
    ledger = Ledger(100)
    ledger.hold("a", 60)
    ledger.resize(40)
    assert ledger.free == -20
    with pytest.raises(Overbooked, match="wants 1 bytes more, -20 are free"):
        ledger.hold("b", 1)
    ledger.hold("a", 55)
    assert ledger.free == -15
    ledger.release("a")
    assert ledger.free == 40


def test_it_reads_as_a_sentence() -> None:
    ledger = Ledger(100)
    ledger.hold("a", 60)
    assert repr(ledger) == "<Ledger: 1 keys hold 60 of 100 bytes, peak 60>"
