"""Quotas of tenants: the setting, the typed errors, and the noisy neighbour."""

import asyncio

import pytest

from eviction.ledger import Ledger
from eviction.policies import DEFAULT, POLICIES
from runtime.cache import Bounds, ModelCache
from runtime.config import Settings
from runtime.errors import NoRoom, OverQuota, TooLarge
from runtime.observer import NullObserver
from runtime.sources import SettingsRefused, load
from runtime.status import status_of
from runtime.tenants import Tenants, parse_tenants
from tests.fake_models import FakeLoader, spec_of
from tests.invariants import check


def cache_of(shares: str, capacity: int, policy: str = DEFAULT, **bounds) -> ModelCache:
    return ModelCache(
        FakeLoader(),
        POLICIES[policy](),
        Ledger(capacity),
        NullObserver(),
        Bounds(**bounds),
        tenants=Tenants(parse_tenants(shares)),
    )


async def use(cache: ModelCache, spec) -> None:
    async with cache.lease(spec):
        pass


def held_by(cache: ModelCache, tenant: str) -> int:
    return cache.room.shares()[tenant].held


def test_the_setting_as_text_and_as_a_table(tmp_path):
    text = "search=2GiB:4GiB:8GiB, ads=10%:20%,tail=::1MiB"
    told = load({"tenant_shares": text}, environ={}).tenant_shares
    file = tmp_path / "hotset.toml"
    file.write_text(
        '[tenant_shares]\nsearch = "2GiB:4GiB:8GiB"\nads = "10%:20%"\ntail = "::1MiB"\n'
    )
    assert load({}, file, environ={}).tenant_shares == told
    assert Tenants(parse_tenants(str(told))) == told
    share = told.quotas["ads"].share(held=7, capacity=1000)
    assert (share.held, share.floor, share.quota, share.ceiling) == (7, 100, 200, None)
    assert told.quotas["tail"].share(0, 10).ceiling == 2**20
    assert not Settings().tenant_shares


@pytest.mark.parametrize(
    "text", ["a", "a=", "=1GiB", "a=1:2:3:4", "a=x", "a=1GiB,a=2GiB", "a=60%,b=50%"]
)
def test_a_setting_that_cannot_be_meant_is_refused(text):
    with pytest.raises(SettingsRefused, match="--tenant-shares"):
        load({"tenant_shares": text}, environ={})


@pytest.mark.parametrize("policy", POLICIES)
async def test_a_noisy_neighbour_does_not_push_others_below_their_floor(policy):
    """A cycles through 500 models; B, asked once, keeps what it was promised."""
    cache = cache_of("b=40", 100, policy)
    mine = [spec_of(f"b{i}", 10, tenant="b") for i in range(6)]
    for spec in mine:
        await use(cache, spec)
    noisy = [spec_of(f"a{i}", 5 + i % 7, tenant="a") for i in range(500)]
    for start in range(0, len(noisy), 3):
        await asyncio.gather(*(use(cache, spec) for spec in noisy[start : start + 3]))
        assert held_by(cache, "b") >= 40
        check(cache)
    assert cache.ledger.held <= 100
    assert cache.arrivals.loads >= 506
    await cache.aclose()


async def test_without_a_floor_the_neighbour_takes_all():
    """The test above can fail: it is the floor that keeps them."""
    cache = cache_of("b=0:50", 100, "lru")
    for index in range(6):
        await use(cache, spec_of(f"b{index}", 10, tenant="b"))
    for index in range(50):
        await use(cache, spec_of(f"a{index}", 10, tenant="a"))
    assert held_by(cache, "b") == 0
    await cache.aclose()


async def test_who_is_over_its_quota_makes_room_first():
    cache = cache_of("a=0:20", 60, "lru")
    other = spec_of("other", 20)
    await use(cache, other)  # the oldest: without quotas it would leave
    for index in range(4):
        await use(cache, spec_of(f"a{index}", 10, tenant="a"))
    await use(cache, spec_of("new", 10))
    assert other.key in cache.residencies
    assert held_by(cache, "a") == 30
    await cache.aclose()


async def test_a_ceiling_holds_with_room_to_spare_and_says_so():
    cache = cache_of("a=::20", 100, "lru", patience=0.01)
    one, two = (spec_of(f"a{i}", 12, tenant="a") for i in range(2))
    async with cache.lease(one):
        with pytest.raises(OverQuota, match="its tenant 'a' holds 12 of at most 20"):
            await use(cache, two)
    await use(cache, two)
    assert held_by(cache, "a") == 12
    with pytest.raises(TooLarge, match="the ceiling of its tenant 'a', 20 bytes"):
        await use(cache, spec_of("a9", 21, tenant="a"))
    status = status_of(OverQuota("full", 1.0))
    assert (status.http, status.retry) == (429, 1.0)
    await cache.aclose()


async def test_a_device_that_shrinks_breaks_floors_rather_than_the_budget():
    cache = cache_of("b=40", 100, "lru")
    for index in range(4):
        await use(cache, spec_of(f"b{index}", 10, tenant="b"))
    cache.resize(20)
    await asyncio.sleep(0.01)
    assert cache.ledger.held <= 20
    await cache.aclose()


async def test_a_promise_to_others_is_named():
    cache = cache_of("b=10", 10, "lru", patience=0.01)
    await use(cache, spec_of("b", 10, tenant="b"))
    with pytest.raises(NoRoom, match="promised to other tenants"):
        await use(cache, spec_of("a", 10))
    await cache.aclose()
