"""The five traps of runtime/cache.py, one test each, by their names there."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest

from eviction.ledger import Ledger
from eviction.lru import Lru
from loader.errors import ArtifactRefused
from loader.threads import to_its_end
from loader.turns import ERRAND, Errand
from runtime.cache import Bounds, ModelCache
from runtime.errors import Draining
from runtime.observer import NullObserver
from runtime.residency import Stage
from tests.fake_models import FakeLoader, spec_of
from tests.invariants import check, check_empty

A, B, C = spec_of("a", 6), spec_of("b", 6), spec_of("c", 4)


def cache_of(loader: FakeLoader, capacity: int, **bounds) -> ModelCache:
    return ModelCache(loader, Lru(), Ledger(capacity), NullObserver(), Bounds(**bounds))


async def turn() -> None:
    """Let everything run that can."""
    for _ in range(20):
        await asyncio.sleep(0)


async def use(cache: ModelCache, spec) -> str:
    async with cache.lease(spec) as model:
        assert not model.closed
        return model.spec.name


async def test_trap_1_a_waiter_is_a_lease() -> None:
    """b's load is let in the moment a's ends; a must be used before it may leave."""
    loader = FakeLoader()
    loader.held = True
    cache = cache_of(loader, 10)
    first = asyncio.create_task(use(cache, A))
    await turn()
    second = asyncio.create_task(use(cache, B))
    await turn()
    loader.loading["a"].set_result(None)
    # In the very turn in which a arrives, b asks for its room: a has been promised.
    await turn()
    assert await first == "a"
    await turn()
    assert loader.calls[:3] == ["load a", "unload a", "load b"]
    loader.loading["b"].set_result(None)
    assert await second == "b"
    await cache.aclose()
    check_empty(cache)


async def test_trap_2_victims_are_marked_before_anything_awaits() -> None:
    """Two models must go for one. Between the two unloads nobody gets the second."""
    loader = FakeLoader()
    cache = cache_of(loader, 10)
    small = [spec_of("s1", 5), spec_of("s2", 5)]
    for spec in small:
        await use(cache, spec)
    loader.hold_unloads = True
    big = asyncio.create_task(use(cache, spec_of("big", 10)))
    await turn()
    stages = {cache.residencies[spec.key].stage for spec in small}
    assert stages == {Stage.LEAVING}
    late = asyncio.create_task(use(cache, small[1]))
    await turn()
    assert not late.done(), "a leaving model was used"
    for name in ("s1", "s2"):
        loader.unloading[name].set_result(None)
    loader.hold_unloads = False
    assert await big == "big"
    assert await late == "s2"
    await cache.aclose()
    check_empty(cache)


async def test_trap_3_an_unload_is_not_the_child_of_the_load() -> None:
    """Whoever wanted the room goes away in the midst: the unload goes on to its end."""
    loader = FakeLoader()
    cache = cache_of(loader, 10)
    await use(cache, A)
    loader.hold_unloads = True
    wanting = asyncio.create_task(use(cache, B))
    await turn()
    wanting.cancel()
    await asyncio.wait([wanting])
    await turn()
    assert cache.residencies[A.key].stage is Stage.LEAVING
    loader.unloading["a"].set_result(None)
    await turn()
    assert loader.resident == {}
    assert cache.ledger.held == 0
    assert "load b" not in loader.calls
    check_empty(cache)


async def test_an_unload_is_on_nobody_s_errand() -> None:
    """The copies of a load that nobody waits for are put off, and cancelled with it:
    an unload that this load set off would end in the midst."""

    class Asking(FakeLoader):
        async def unload(self, model) -> None:
            self.calls.append(f"errand {ERRAND.get()}")
            await super().unload(model)

    loader = Asking()
    cache = cache_of(loader, 10)
    await use(cache, A)
    ERRAND.set(Errand(urgent=False))
    cache.resize(0)
    await turn()
    assert loader.calls == ["load a", "errand None", "unload a"]


async def test_trap_4_a_cancelled_request_waits_for_its_thread() -> None:
    """The forward reads weights: while it runs, the lease stands, whatever we do."""
    loader = FakeLoader()
    cache = cache_of(loader, 10)
    running, may_end = Event(), Event()
    states: list[bool] = []

    def forward(model) -> None:
        running.set()
        may_end.wait(10)
        states.append(model.closed)

    async def predict(lane) -> None:
        async with cache.lease(A) as model:
            await to_its_end(lane, forward, model)

    with ThreadPoolExecutor(1) as lane:
        request = asyncio.create_task(predict(lane))
        await asyncio.to_thread(running.wait, 10)
        request.cancel()
        unload = asyncio.create_task(cache.unload(A.key))
        await turn()
        request.cancel()  # a client that is gone may be cancelled twice
        await turn()
        assert not request.done()
        assert not unload.done()
        assert cache.residencies[A.key].leases == 1
        may_end.set()
        with pytest.raises(asyncio.CancelledError):
            await request
        await unload
    assert states == [False], "freed in use"
    check_empty(cache)


async def test_trap_5_closing_waits_for_leases_itself() -> None:
    """A server's stop may return while handlers run: memory must not go under them."""
    loader = FakeLoader()
    cache = cache_of(loader, 10)
    may_end = asyncio.Event()

    async def handler() -> None:
        async with cache.lease(A) as model:
            await may_end.wait()
            assert not model.closed

    running = asyncio.create_task(handler())
    await turn()
    closing = asyncio.create_task(cache.aclose())
    await turn()
    assert not closing.done()
    with pytest.raises(Draining):
        await use(cache, C)
    may_end.set()
    await running
    await closing
    check_empty(cache)


async def test_a_load_cancelled_before_its_first_step_leaves_nothing() -> None:
    """A task cancelled before it began never runs a line of its own."""
    loader = FakeLoader()
    cache = cache_of(loader, 10)
    life = cache.begin(A)
    life.take()
    life.give_back()
    cache.released(life)
    await turn()
    assert loader.calls == []
    check_empty(cache)


async def test_a_model_larger_than_was_booked_is_refused_and_its_bytes_go() -> None:
    loader = FakeLoader()
    cache = cache_of(loader, 10)
    bound = loader.size
    loader.size = lambda spec: bound(spec) - 2
    full = asyncio.create_task(use(cache, spec_of("f", 12)))
    with pytest.raises(ArtifactRefused, match="more than"):
        await full
    assert not cache.residencies
    assert (cache.ledger.held, loader.resident) == (0, {})
    await cache.aclose()
    check_empty(cache)


async def test_ten_thousand_waiters_are_one_load() -> None:
    loader = FakeLoader()
    loader.held = True
    cache = cache_of(loader, 10)
    waiters = [asyncio.create_task(use(cache, A)) for _ in range(10_000)]
    await turn()
    check(cache)
    assert cache.waiting == 10_000
    loader.loading["a"].set_result(None)
    assert await asyncio.gather(*waiters) == ["a"] * 10_000
    assert loader.calls == ["load a"]
    assert cache.waiting == 0
    await cache.aclose()
