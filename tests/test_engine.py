"""One contract, two engines: the one in this process, and the same one asked from
another side of a socket. Real store, real weights, real threads, no network."""

import asyncio
import contextlib
from pathlib import Path

import pytest
import torch

from loader.errors import ArtifactRefused, ModelNotFound
from loader.slab import rounded
from runtime.compose import composed
from runtime.config import Settings
from runtime.devices import pick_device
from runtime.engine import Request
from runtime.errors import BadRequest, Draining, TooLarge
from runtime.loading import Unservable
from runtime.observer import NullObserver
from tests import tiny_models
from tests.apart import apart

X = torch.ones(1, 4)


@pytest.fixture(params=["here", "apart"], autouse=True)
def where(request) -> str:
    """Which of the two."""
    return request.param


@pytest.fixture
def engine_over(where):
    """`async with engine_over(folder, setting=...) as engine`."""

    @contextlib.asynccontextmanager
    async def over(folder: Path, **settings):
        told = {"store": str(folder), "device": "cpu", "budget": "1MiB", **settings}
        async with composed(Settings(**told), NullObserver()) as engine:
            if where == "here":
                yield engine
                return
            async with apart(engine) as (remote, answering):
                yield remote
                await remote.drain()
                assert (remote.calls, remote.held) == (0, 0)
                assert (answering.calls, answering.held) == (0, 0)
        assert (await engine.snapshot()).held == 0

    return over


async def ask(engine, model: str, version: str = "", x=X, **more) -> float:
    answer = await engine.predict(Request(model, {"x": x}, version, **more))
    return answer.outputs[0][1][0, 0].item()


@pytest.fixture
def store(tmp_path: Path) -> Path:
    for index in range(1, 6):
        tiny_models.linear(tmp_path, f"m{index}", index)
    return tmp_path


async def test_cold_then_warm(store, engine_over) -> None:
    async with engine_over(store) as engine:
        cold = await engine.predict(Request("m3", {"x": X}))
        warm = await engine.predict(Request("m3", {"x": X}))
    assert (cold.temperature, warm.temperature) == ("miss", "hit")
    assert (cold.model, cold.version) == ("m3", "1")
    assert cold.outputs[0][0] == "y"
    assert cold.outputs[0][1].tolist() == [[3.0] * 4]


async def test_the_budget_holds_while_all_models_are_asked(store, engine_over) -> None:
    size = rounded((store / "m1" / "1" / "model.safetensors").stat().st_size)
    async with engine_over(store, budget=str(size * 2)) as engine:
        jobs = [ask(engine, f"m{i % 5 + 1}") for i in range(100)]
        assert await asyncio.gather(*jobs) == [float(i % 5 + 1) for i in range(100)]
        snapshot = await engine.snapshot()
        assert snapshot.peak_held <= snapshot.capacity == size * 2
        assert snapshot.evictions >= 1
        assert sum(snapshot.requests.values()) == 100


async def test_requested_outputs_and_rows(store, engine_over) -> None:
    async with engine_over(store) as engine:
        answer = await engine.predict(
            Request("m2", {"x": torch.ones(5, 4)}, outputs=("y",))
        )
        assert answer.outputs[0][1].shape == (5, 4)
        with pytest.raises(BadRequest, match="unexpected inference output 'z'"):
            await engine.predict(Request("m2", {"x": X}, outputs=("z",)))
        with pytest.raises(BadRequest, match="batch-size must be <= 8"):
            await ask(engine, "m2", x=torch.ones(9, 4))


async def test_errors_are_typed(store, engine_over) -> None:
    (store / "m1" / "1" / "model.safetensors").write_bytes(b"x" * 400)
    tiny_models.linear(store, "huge", extra=2 << 20)
    async with engine_over(store) as engine:
        with pytest.raises(ModelNotFound):
            await ask(engine, "nobody")
        with pytest.raises(ModelNotFound, match="version 9"):
            await ask(engine, "m2", "9")
        with pytest.raises(ArtifactRefused):
            await ask(engine, "m1")
        with pytest.raises(TooLarge, match="whole budget"):
            await ask(engine, "huge")
        assert await engine.servable("m2")
        assert not await engine.servable("m1"), "it failed a moment ago"
        assert not await engine.servable("nobody")
        states = {e.name: (e.state, e.reason) for e in await engine.index()}
        assert states["m1"][0] == "UNAVAILABLE"
        assert "model.safetensors" in states["m1"][1]
        assert (await engine.snapshot()).held == 0


async def test_load_and_unload(store, engine_over) -> None:
    async with engine_over(store) as engine:
        await engine.load("m1")
        await engine.load("m2")
        assert [e.name for e in await engine.index(ready_only=True)] == ["m1", "m2"]
        await engine.unload("m1")
        await engine.unload("nobody")
        assert [e.name for e in await engine.index(ready_only=True)] == ["m2"]
        assert [e.name for e in await engine.index()] == ["m1", "m2"]
        assert await ask(engine, "m1") == 1.0


async def test_statistics(store, engine_over) -> None:
    async with engine_over(store) as engine:
        for _ in range(3):
            await ask(engine, "m1")
        with pytest.raises(BadRequest):
            await ask(engine, "m1", x=torch.ones(1, 5))
        (stats,) = await engine.statistics("m1")
        assert (stats.requests, stats.executions) == (3, 3)
        assert (stats.hits.count, stats.misses.count, stats.fail.count) == (2, 1, 1)
        assert stats.bytes_by_tier == {"cpu": 256}
        assert stats.last_use > 1.7e9
        assert await engine.statistics("nobody") == []
        (resident,) = (await engine.snapshot()).residents
        assert (resident.name, resident.uses, resident.nbytes) == ("m1", 3, 256)


async def test_a_new_generation_takes_over_without_a_gap(store, engine_over) -> None:
    async with engine_over(store, catalog_ttl=0) as engine:
        assert await ask(engine, "m1") == 1.0
        tiny_models.linear(store, "m1", 50)
        answers = [await ask(engine, "m1") for _ in range(200)]
        while answers[-1] != 50.0:
            await asyncio.sleep(0)  # a hit may run without giving the loop a turn
            answers.append(await ask(engine, "m1"))
        assert set(answers) <= {1.0, 50.0}
        assert answers == sorted(answers), "an old answer after a new one"


async def test_a_corrected_manifest_takes_effect(store, engine_over) -> None:
    """The weights are what they were; what may be asked is not."""
    async with engine_over(store, catalog_ttl=0) as engine:
        assert await ask(engine, "m1") == 1.0
        tiny_models.linear(store, "m1", 1, max_batch_size=1, pin=True)
        while (await engine.describe("m1")).max_batch_size > 1:  # noqa: ASYNC110
            await asyncio.sleep(0)
        assert await ask(engine, "m1") == 1.0
        assert any(one.pinned for one in (await engine.snapshot()).residents)
        with pytest.raises(BadRequest):
            await ask(engine, "m1", x=X.repeat(2, 1))


async def test_a_model_overwritten_while_it_was_away_costs_nobody_an_error(
    store, engine_over
) -> None:
    """Its manifest is believed for a while; the bytes beside it are others by now."""
    async with engine_over(store, catalog_ttl=1000) as engine:
        assert await ask(engine, "m1") == 1.0
        assert await ask(engine, "m1", "1") == 1.0
        await engine.unload("m1")
        tiny_models.linear(store, "m1", 50)
        waiting = [ask(engine, "m1", version) for version in ("", "1") * 20]
        assert set(await asyncio.gather(*waiting)) == {50.0}
        await engine.unload("m1")
        tiny_models.linear(store, "m1", 60)
        await engine.load("m1")
        assert await ask(engine, "m1") == 60.0
        (stats,) = await engine.statistics("m1")
        assert stats.fail.count == 0


async def test_what_stays_broken_is_refused_after_one_more_look(
    store, engine_over
) -> None:
    async with engine_over(store, catalog_ttl=1000) as engine:
        await engine.describe("m1")
        (store / "m1" / "1" / "model.safetensors").write_bytes(b"x" * 400)
        for _ in range(3):
            with pytest.raises(ArtifactRefused):
                await ask(engine, "m1")
            with pytest.raises(ArtifactRefused):
                await engine.load("m1")
        (stats,) = await engine.statistics("m1")
        assert stats.fail.count == 3


async def test_a_broken_upload_takes_no_serving_model_down(store, engine_over) -> None:
    async with engine_over(store, catalog_ttl=0) as engine:
        assert await ask(engine, "m1") == 1.0
        tiny_models.linear(store, "m1", 50)
        weights = store / "m1" / "1" / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1] + b"!")
        for _ in range(100):
            assert await ask(engine, "m1") == 1.0


async def test_drain_refuses_what_comes_later(store, engine_over) -> None:
    async with engine_over(store) as engine:
        await ask(engine, "m1")
        assert engine.ready
        await engine.drain()
        assert not engine.ready
        assert (await engine.snapshot()).held == 0
        with pytest.raises(Draining):
            await ask(engine, "m1")
        with pytest.raises(Draining):
            await ask(engine, "m5")
        assert not await engine.servable("m2")


async def test_a_pinned_model_survives_the_crowd(store, engine_over) -> None:
    tiny_models.linear(store, "rock", 7, pin=True)
    size = rounded((store / "m1" / "1" / "model.safetensors").stat().st_size)
    async with engine_over(store, budget=str(size * 2)) as engine:
        await ask(engine, "rock")
        for index in range(1, 6):
            await ask(engine, f"m{index}")
        names = {
            r.name for r in (await engine.snapshot()).residents if r.state == "READY"
        }
        assert "rock" in names


def test_a_device_that_is_not_there() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    if not torch.cuda.is_available():
        assert pick_device("auto") == torch.device("cpu")
        with pytest.raises(Unservable, match="use --device cpu"):
            pick_device("cuda:0")
