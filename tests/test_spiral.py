"""Spirals: seen, broken, over, and nobody starves. All in virtual time."""

import asyncio
import random
from itertools import pairwise

import pytest
from structlog.testing import capture_logs

from eviction.ledger import Ledger
from eviction.policies import DEFAULT, POLICIES
from eviction.spiral import LOADS, STAY, TURNS, Spiral
from runtime.cache import Bounds, ModelCache
from runtime.errors import NoRoom, Thrashing
from runtime.observer import NullObserver
from runtime.status import status_of
from tests.detloop import DetLoop
from tests.fake_models import FakeLoader, spec_of
from tests.invariants import check, check_empty

LOAD_S = 1.0


class SlowLoader(FakeLoader):
    async def load(self, spec):
        await asyncio.sleep(LOAD_S)
        return await super().load(spec)


def in_virtual_time(story):
    loop = DetLoop(0, lambda: None, shuffled=False)
    asyncio.set_event_loop(loop)
    try:
        return loop.run_until_complete(story)
    finally:
        asyncio.set_event_loop(None)
        loop.close()


async def crowd(on: bool, models: int, policy: str = DEFAULT, minutes: int = 10):
    """Each model has a client that asks, works for 50 ms, and asks again; a third of
    the models fit. Gives the cache and, by model, when it was served."""
    loop = asyncio.get_running_loop()
    cache = ModelCache(
        SlowLoader(),
        POLICIES[policy](),
        Ledger(models // 3),
        NullObserver(),
        Bounds(anti_thrash=on, patience=30.0),
    )
    served: dict[str, list[float]] = {}
    chance = random.Random(0)

    async def client(name: str, pause: float) -> None:
        spec = spec_of(name, 1)
        while loop.time() < 60 * minutes:
            try:
                async with cache.lease(spec):
                    await asyncio.sleep(0.05)
                served.setdefault(name, []).append(loop.time())
            except NoRoom as error:
                await asyncio.sleep(error.retry_after * chance.uniform(1.0, 1.2))
            await asyncio.sleep(pause)
            check(cache)

    clients = [client(f"m{i}", 0.05 + 0.02 * i) for i in range(models)]
    await asyncio.gather(*clients)
    await cache.aclose()
    check_empty(cache)
    return cache, served


@pytest.mark.parametrize("policy", ["lru", DEFAULT])
def test_churn_falls_and_more_is_served(policy):
    calm, served = in_virtual_time(crowd(True, 12, policy))
    churned, before = in_virtual_time(crowd(False, 12, policy))
    assert calm.spiral.relapses > 0
    assert churned.spiral.deferred == 0
    assert calm.arrivals.loads < 0.5 * churned.arrivals.loads
    answers, answers_before = (sum(map(len, x.values())) for x in (served, before))
    assert answers > 1.5 * answers_before


@pytest.mark.parametrize("policy", ["lru", DEFAULT])
def test_nobody_starves(policy):
    """The longest that any model goes unserved is bounded: by the turns of all who
    want a place, each of which lasts its stay."""
    models, minutes = 12, 10
    _, served = in_virtual_time(crowd(True, models, policy, minutes))
    assert len(served) == models
    places = models // 3
    bound = 3 * (STAY + 2) * LOAD_S * models / places + TURNS * STAY * LOAD_S
    for name, times in served.items():
        moments = [0.0, *times, 60.0 * minutes]
        gaps = [b - a for a, b in pairwise(moments)]
        assert max(gaps) <= bound, name


def test_where_all_fits_nothing_ever_turns():
    async def story():
        cache = ModelCache(
            SlowLoader(), POLICIES[DEFAULT](), Ledger(9), NullObserver(), Bounds()
        )
        for _ in range(50):
            for index in range(9):
                async with cache.lease(spec_of(f"m{index}", 1)):
                    pass
        assert not cache.spiral.turning
        assert cache.spiral.deferred == 0
        await cache.aclose()

    in_virtual_time(story())


def test_a_scan_is_no_spiral():
    """Each model once: much is loaded and evicted, and nothing is wanted back."""

    async def story():
        cache = ModelCache(
            SlowLoader(), POLICIES[DEFAULT](), Ledger(3), NullObserver(), Bounds()
        )
        for index in range(200):
            async with cache.lease(spec_of(f"m{index}", 1)):
                pass
        assert cache.arrivals.loads == 200
        assert not cache.spiral.turning
        await cache.aclose()

    in_virtual_time(story())


def test_the_operator_is_told_when_it_begins():
    with capture_logs() as logs:
        in_virtual_time(crowd(True, 12, minutes=2))
    events = [line["event"] for line in logs]
    assert events.count("spiral") >= 1
    assert events.count("spiral") - events.count("spiral over") in (0, 1)


def test_begins_above_the_share_and_ends_below_half_of_it():
    spiral = Spiral()
    changes = []
    for index in range(200):
        model = f"m{index}"
        if index < 60 and index % 2:
            spiral.evicted(model, load_s=2.0, now=index)
            spiral.wanted(model, now=index + 1.0)
        if spiral.loaded(model):
            changes.append((index, spiral.turning))
    assert [turning for _, turning in changes] == [True, False]
    assert LOADS / 2 - 1 <= changes[0][0] < LOADS
    assert 60 < changes[1][0] < 60 + LOADS


def test_what_is_wanted_later_than_its_load_takes_is_no_relapse():
    spiral = Spiral()
    for index in range(100):
        spiral.evicted("m", load_s=2.0, now=10.0 * index)
        spiral.wanted("m", now=10.0 * index + 2.5)
        spiral.loaded("m")
    assert spiral.relapses == 0
    assert not spiral.turning


def test_nobody_is_sent_away_more_than_so_often_in_a_row():
    spiral = Spiral()
    assert [spiral.send_away("m") for _ in range(TURNS + 2)] == [True] * TURNS + [
        False,
        False,
    ]
    spiral.loaded("m")
    assert spiral.send_away("m")


def test_it_is_told_as_no_room_with_a_hint():
    status = status_of(Thrashing("later", 2.5))
    assert (status.code.name, status.http, status.retry) == (
        "RESOURCE_EXHAUSTED",
        429,
        2.5,
    )
