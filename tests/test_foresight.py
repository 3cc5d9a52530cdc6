"""What the recent past says comes next; times and orders by hand."""

from collections.abc import Sequence

import pytest

from eviction import foresight
from eviction.foresight import HOLD_S, LEAD_S, Foresight


def after(seen: Foresight, model: str, now: float = 0.0) -> list[tuple[str, float]]:
    return [(hunch.model, hunch.chance) for hunch in seen.following(model, now)]


def tell(seen: Foresight, story: Sequence[str], now: float = 0.0) -> None:
    for model in story:
        seen.told(model, now)


def test_who_always_follows_is_foreseen_and_until_when() -> None:
    seen = Foresight()
    tell(seen, "abxyz" * 3)
    assert after(seen, "a") == [], "three times are no habit"
    tell(seen, "abxyz")
    assert after(seen, "a") == [("b", 1.0), ("x", 1.0), ("y", 1.0), ("z", 1.0)]
    (first, *_) = seen.following("a", 7.0)
    assert first.until == 7.0 + HOLD_S


def test_the_share_of_the_requests_decides() -> None:
    seen = Foresight()
    for n in range(10):
        tell(seen, "ab" if n % 2 else "ac", float(n))
        tell(seen, [f"{n}-{k}" for k in range(4)], float(n))
    assert after(seen, "a") == [("b", 0.5), ("c", 0.5)]


def test_out_of_reach_is_out_of_sight(monkeypatch) -> None:
    seen = Foresight()
    for n in range(8):
        seen.told("a", 0.0)
        for other in range(foresight.REACH):
            seen.told(f"{n}{other}", 0.0)
        seen.told("late", 0.0)
    assert "late" not in dict(after(seen, "a"))
    assert "late" in dict(after(seen, "70")) or after(seen, "70") == []


def test_asked_again_and_again_it_follows_nobody_twice() -> None:
    seen = Foresight()
    for _ in range(5):
        tell(seen, "aaaa")
        tell(seen, "b")
        tell(seen, "1234")
    past = seen._past["a"]
    assert past.requests == 5, "asked again at once, it came once"
    assert dict(after(seen, "a"))["b"] == 1.0


def test_who_follows_many_times_after_one_request_followed_it_once() -> None:
    seen = Foresight()
    tell(seen, "a" + "cx" * 10 + "1234")
    for n in range(3):
        tell(seen, ["a", *(f"{n}{k}" for k in range(4))])
    past = seen._past["a"]
    assert past.after["c"] / past.requests == 0.25
    assert after(seen, "a") == []


def test_each_time_it_came_counts() -> None:
    seen = Foresight()
    for _ in range(4):
        tell(seen, "axay")
        tell(seen, "1234")
    assert dict(after(seen, "a")) == {"x": 0.5, "y": 1.0, "1": 1.0, "2": 0.5, "3": 0.5}


def test_old_habits_fade() -> None:
    seen = Foresight()
    tell(seen, "ab1234" * 20)
    assert ("b", 1.0) in after(seen, "a")
    tell(seen, "ac1234" * 60)
    assert dict(after(seen, "a"))["c"] > 0.6
    assert "b" not in dict(after(seen, "a"))


def test_a_rhythm_is_due_around_its_time_and_only_then() -> None:
    seen = Foresight()
    for n in range(6):
        seen.told("cron", 600.0 * n)
        seen.told("wild", 600.0 * n + (n * 7919) % 590)
    last = 3000.0
    for now, due in (
        (last + 300, False),
        (last + 600 - LEAD_S - 1, False),
        (last + 600 - LEAD_S / 2, True),
        (last + 600 + LEAD_S / 2, True),
        (last + 600 + LEAD_S + 1, False),
    ):
        assert ("cron" in [hunch.model for hunch in seen.due(now)]) == due, now
    (hunch,) = [h for h in seen.due(last + 600) if h.model == "cron"]
    assert hunch.until == pytest.approx(last + 600 + LEAD_S)


def test_who_comes_every_second_has_no_rhythm_worth_a_fetch() -> None:
    seen = Foresight()
    for n in range(30):
        seen.told("often", float(n))
    assert list(seen.due(30.0)) == []


def test_what_is_remembered_is_bounded(monkeypatch) -> None:
    monkeypatch.setattr(foresight, "REMEMBERED", 10)
    seen = Foresight()
    for n in range(1000):
        seen.told(f"m{n}", float(n))
    assert repr(seen) == "<Foresight: 10 models>"
    for n in range(400):
        seen.told("a", float(n))
        seen.told(f"x{n % 40}", float(n))
    assert len(seen._past["a"].after) <= foresight.SUCCESSORS
    seen.forget("a")
    assert after(seen, "a") == []
