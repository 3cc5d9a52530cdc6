"""Why a model is here, or is not: by the cache itself, and over HTTP."""

import asyncio
from dataclasses import replace

import httpx
import pytest

from eviction.gdsf import Gdsf
from eviction.ledger import Ledger
from eviction.lru import Lru
from runtime.cache import Bounds, ModelCache
from runtime.counts import Counts
from runtime.decisions import Decision, Decisions
from runtime.explain import explain
from runtime.explanation import NotAnExplanation, decode, encode
from runtime.metrics import Metrics
from runtime.observer import NullObserver
from runtime.rest import application, listening
from runtime.rest_pages import ServerInfo
from tests.fake_engine import FakeEngine
from tests.fake_models import FakeLoader, spec_of

A, B, C, BIG = spec_of("a", 4), spec_of("b", 4), spec_of("c", 4), spec_of("big", 10)


@pytest.fixture
def loader() -> FakeLoader:
    return FakeLoader()


@pytest.fixture
async def cache(loader):
    cache = ModelCache(loader, Lru(), Ledger(10), NullObserver(), Bounds(patience=0.0))
    yield cache
    await cache.aclose()


async def use(cache, *specs) -> None:
    for spec in specs:
        async with cache.lease(spec):
            pass


async def test_who_is_here_and_who_would_leave_first(cache):
    await use(cache, A, B, A)
    found = explain(cache, B, "lru")
    assert found.state == "READY"
    assert "0 of 2 that may leave would leave before it" in found.because
    assert [one.name for one in found.ranking] == ["b", "a"]
    assert found.rank == 0
    assert found.density == found.ranking[0].density < found.ranking[1].density
    assert [event.what for event in found.history] == ["loaded"]


async def test_a_dry_run_pushes_nobody_out(cache, loader):
    await use(cache, A, B, A)
    found = explain(cache, C, "lru")
    assert [one.name for one in found.would_push_out] == ["b"]
    assert [one.name for one in explain(cache, BIG, "lru").would_push_out] == ["b", "a"]
    assert set(loader.resident) == {A.key, B.key}
    assert loader.calls == ["load a", "load b"]


async def test_who_pushed_whom_out_and_how_it_stood_then(cache):
    await use(cache, A, B, A, C)
    found = explain(cache, B, "lru")
    assert found.state == "UNAVAILABLE"
    assert "to make room for c:1: number 1 of 2 that could leave" in found.because
    left = found.history[-1]
    assert (left.what, left.reason, left.cause) == ("left", "room", "c:1")
    assert (left.rank, left.ranked, left.nbytes) == (0, 2, 4)
    assert left.density == pytest.approx(cache.room.price)
    assert left.load_s is not None
    # The one that did it knows of it, too.
    assert [event.model for event in explain(cache, C, "lru").history] == ["b", "c"]


async def test_in_use_pinned_and_never_seen(cache):
    rock = spec_of("rock", 2, pin=True)
    await use(cache, rock)
    assert "pinned" in explain(cache, rock, "lru").because
    assert explain(cache, rock, "lru").rank is None
    async with cache.lease(A):
        assert "in use by 1" in explain(cache, A, "lru").because
        found = explain(cache, BIG, "lru")
        assert found.short == 6, "nobody may leave: what is missing is said"
        assert found.would_push_out == []
    assert "nobody has asked for it" in explain(cache, B, "lru").because


async def test_refusals_and_shrinkage_are_remembered(cache, loader):
    loader.broken["a"] = [ValueError("a bug")]
    with pytest.raises(ValueError, match="a bug"):
        await use(cache, A)
    assert "refused" in explain(cache, A, "lru").because
    await use(cache, B, C)
    cache.resize(4)
    await asyncio.sleep(0)
    what = [(one.what, one.model) for one in cache.chronicle.decisions.all()]
    assert ("shrunk", "") in what
    assert ("left", "b") in what
    assert "less memory" in explain(cache, B, "lru").because


async def test_asking_changes_no_eviction():
    """GreedyDual notes what the last plan asked: an explanation must not spoil it."""

    async def story(asked: bool) -> list[str]:
        loader = FakeLoader()
        cache = ModelCache(loader, Gdsf(), Ledger(12), NullObserver(), Bounds())
        cache.room.reload_s = lambda specs, nbytes, load_s: [1.0 + n for n in nbytes]
        now = [0.0]
        cache.clock = lambda: now[0]  # who came lately stays: not as this machine likes
        specs = [spec_of(f"m{i}", 2 + i % 4) for i in range(8)]
        for step in range(120):
            now[0] += 1.0
            await use(cache, specs[(step * step) % 7], specs[step % 8])
            if asked:
                explain(cache, specs[step % 5], "gdsf")
        await cache.aclose()
        return loader.calls

    assert await story(True) == await story(False)


def test_the_log_is_bounded_and_refusals_do_not_push_out_the_rest():
    log = Decisions(remembered=8)
    for index in range(20):
        log.add(Decision(float(index), "left", f"m{index}", "1"))
    for index in range(100):
        log.add(Decision(100.0 + index, "refused", "noisy", "1"))
    assert len(log) == 8 + 2
    assert [one.model for one in log.all()][:8] == [f"m{i}" for i in range(12, 20)]
    assert len(log.about("noisy", "1", 50)) == 2
    assert log.about("m3", "1", 50) == []


@pytest.fixture
async def client():
    app = application(FakeEngine(), Metrics(Counts(), "1"), ServerInfo("h", "1"))
    async with (
        listening(app, "127.0.0.1", 0) as port,
        httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", trust_env=False
        ) as client,
    ):
        yield client


async def test_over_http(client):
    answer = await client.get("/hotset/explain/linear?version=1")
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    found = decode(answer.content)
    assert found == await FakeEngine().explain("linear")
    unknown = await client.get("/hotset/explain/nobody")
    assert unknown.status_code == 404
    assert "nobody" in unknown.json()["error"]


async def test_a_reader_takes_the_keys_it_knows():
    found = await FakeEngine().explain("linear")
    more = encode(replace(found, short=3)).replace(b"{", b'{"later": 1, ', 1)
    assert decode(more).short == 3
    with pytest.raises(NotAnExplanation, match="version"):
        decode(b'{"model": "m"}')
