"""Prefetch: a whole engine over real files, and one fetch against the clock by hand."""

import asyncio
from pathlib import Path

import pytest
import torch

from eviction.foresight import Foresight
from loader.ahead import Ahead
from loader.errors import StoreUnreachable
from loader.room import Filled
from loader.slab import rounded
from loader.turns import Errand, Turns
from runtime.counts import Counts
from runtime.metrics import Metrics
from runtime.prefetch import AT_ONCE, Listening, World, prefetching
from tests import tiny_models
from tests.fake_models import spec_of
from tests.test_prewarm import ask, engine_over
from tests.test_tiers import Solid


@pytest.fixture
def store(tmp_path: Path) -> Path:
    folder = tmp_path / "store"
    for index in range(1, 20):
        tiny_models.linear(folder, f"m{index}", index)
    return folder


@pytest.fixture
def one(store: Path) -> int:
    return rounded((store / "m1" / "1" / "model.safetensors").stat().st_size)


async def ahead_of(engine):
    return next(
        tier for tier in (await engine.snapshot()).tiers.below if tier.name == "ahead"
    )


def engine_ahead(engine):
    """The tier itself, for what only time would show."""
    return engine.inventory.tiers.__self__._ahead


async def bytes_ahead(engine, model: str) -> int:
    (found,) = [s for s in await engine.statistics() if s.name == model]
    return found.bytes_by_tier.get("ahead", 0)


async def until_ahead(engine, model: str) -> None:
    """It works behind our back: asking the loop for turns is how one waits."""
    while not await bytes_ahead(engine, model):  # noqa: ASYNC110
        await asyncio.sleep(0.01)


async def habit(engine) -> None:
    """m2 comes after m1, and nobody else twice after anybody."""
    for round in range(4):
        await ask(engine, "m1")
        await ask(engine, "m2")
        for n in range(4):
            await ask(engine, f"m{3 + 4 * round + n}")


async def test_who_follows_is_there_before_it_is_asked_for(store, one) -> None:
    async with engine_over(store, budget=str(one), prefetch=str(8 * one)) as engine:
        await habit(engine)
        await ask(engine, "m1")
        await until_ahead(engine, "m2")
        before = await ahead_of(engine)
        loads = dict((await engine.snapshot()).tiers.loads)
        assert await ask(engine, "m2") == 2
        snapshot = await engine.snapshot()
        assert snapshot.tiers.loads.get("host", 0) == loads.get("host", 0) + 1
        tier = await ahead_of(engine)
        assert tier.hits == before.hits + 1
        page, _ = Metrics(Counts(), "1").page(snapshot)
        assert f"hotset_prefetch_useful_total {float(tier.hits)}" in page.decode()
    assert (await ahead_of(engine)).held == 0


async def test_it_is_off_unless_asked_for(store, one) -> None:
    async with engine_over(store, budget=str(one)) as engine:
        await habit(engine)
        assert (await engine.snapshot()).tiers.below == ()


async def test_a_guess_that_came_to_nothing_goes_and_is_counted(store, one) -> None:
    async with engine_over(store, prefetch=str(one)) as engine:
        await habit(engine)
        await engine.unload("m2")
        await ask(engine, "m1")
        await until_ahead(engine, "m2")
        ahead = engine_ahead(engine)
        assert ahead.tier().held <= ahead.capacity == one
        assert not ahead.has_room(1, 0.0), "it may still come true"
        assert ahead.has_room(one, float("inf"))
        assert (await ahead_of(engine)).evictions == 1
        assert not await bytes_ahead(engine, "m2")


class FakeAhead:
    """Fetches when told; keeps its own books."""

    def __init__(self) -> None:
        self.room = True
        self.brought: list[str] = []
        self.gates: dict[str, asyncio.Future] = {}

    def has_room(self, nbytes: int, now: float) -> bool:
        return self.room

    async def bring(self, spec, errand, until) -> None:
        assert not errand.urgent
        gate = self.gates[spec.name] = asyncio.get_running_loop().create_future()
        await gate
        self.brought.append(spec.name)


@pytest.fixture
async def looking():
    """A prefetch that has seen b follow a; gives what hears, and what fetches."""
    ahead, turns, listening = FakeAhead(), Turns(), Listening(None)
    specs = {"b": spec_of("b", 10)}
    wanted = set(specs)
    world = World(specs.get, lambda spec: spec.name in wanted, lambda: 1.0)
    async with prefetching(listening, ahead, turns, world):
        for _ in range(4):
            for model in "ab1234":
                listening.heard(model, 1.0)
        wanted.discard("b")
        await turns_of_the_loop()
        wanted.add("b")
        yield listening, ahead, wanted


async def turns_of_the_loop() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_guess_that_a_request_overtakes_is_called_off(looking) -> None:
    listening, ahead, _ = looking
    listening.heard("a", 1.0)
    await turns_of_the_loop()
    assert list(ahead.gates) == ["b"]
    listening.heard("b", 1.0)
    await turns_of_the_loop()
    assert ahead.gates["b"].cancelled()
    assert ahead.brought == []


@pytest.mark.parametrize("why", ["it is near already", "no room"])
async def test_nothing_is_fetched_without_need_or_room(looking, why) -> None:
    listening, ahead, wanted = looking
    if why == "no room":
        ahead.room = False
    else:
        wanted.clear()
    listening.heard("a", 1.0)
    await turns_of_the_loop()
    assert not ahead.gates


async def test_rhythms_are_looked_at_once_a_tick_however_many_ask(monkeypatch) -> None:
    looks: list[float] = []
    monkeypatch.setattr(Foresight, "due", lambda _, now: looks.append(now) or [])
    now = 1.0
    listening = Listening(None)
    world = World({}.get, lambda spec: False, lambda: now)
    async with prefetching(listening, FakeAhead(), Turns(), world):
        for now in (1.0, 1.5, 1.9, 2.0, 2.9, 3.0):
            listening.heard("a", now)
            await turns_of_the_loop()
    assert looks == [1.0, 2.0, 3.0]


async def test_a_guess_does_not_wait_for_room_in_one_piece(store) -> None:
    """What lies between stays until it is used: other guesses may fit meanwhile."""

    class Below:
        async def fill(self, spec, room) -> Filled:
            return Filled(await room.find(spec.weights.size), None, "store", {})

    ahead = Ahead(3 * 256, torch.device("cpu"), None, memory=Solid())
    ahead.fills_from(Below())
    for name, until in (("a", 1.0), ("b", 9.0), ("c", 1.0)):
        await ahead.bring(spec_of(name, 256), Errand(urgent=False), until)
    assert ahead.has_room(512, 2.0)
    async with asyncio.timeout(2):
        await ahead.bring(spec_of("d", 512), Errand(urgent=False), 9.0)
    assert ahead.tier().held == 256


async def test_the_newest_news_is_kept(looking) -> None:
    listening, ahead, _ = looking
    for n in range(2 * AT_ONCE):
        listening.heard(f"new{n}", 1.0)
    listening.heard("a", 1.0)
    await turns_of_the_loop()
    assert list(ahead.gates) == ["b"]


async def test_a_failure_ends_the_guess_and_not_the_looking(looking) -> None:
    listening, ahead, _ = looking
    for error in (StoreUnreachable("the model store could not be read"), ValueError()):
        listening.heard("a", 1.0)
        await turns_of_the_loop()
        ahead.gates["b"].set_exception(error)
        await turns_of_the_loop()
    listening.heard("a", 1.0)
    await turns_of_the_loop()
    ahead.gates["b"].set_result(None)
    await turns_of_the_loop()
    assert ahead.brought == ["b"]
