"""The engine on a real device: right answers, and every byte given back."""

import asyncio
import gc
import random
from pathlib import Path

import pytest
import torch

from loader.pack import export, write
from runtime.compose import composed
from runtime.config import Settings
from runtime.engine import Request
from runtime.observer import NullObserver
from tests import tiny_models

pytestmark = pytest.mark.gpu
MIB = 1 << 20


def settings(store: Path, budget: int) -> Settings:
    return Settings(store=str(store), device="cuda:0", budget=str(budget))


async def ask(engine, index: int) -> float:
    answer = await engine.predict(Request(f"m{index}", {"x": torch.ones(1, 4)}))
    return answer.outputs[0][1][0, 0].item()


@pytest.mark.timeout(120)
async def test_models_come_and_go_and_answer_right(tmp_path: Path) -> None:
    for index in range(8):
        tiny_models.linear(tmp_path, f"m{index}", index, extra=MIB)
    torch.ones(2, 2, device="cuda:0") @ torch.ones(2, 2, device="cuda:0")
    before = torch.cuda.memory_allocated()  # cuBLAS has its workspace for this thread
    async with composed(
        settings(tmp_path, 3 * MIB + MIB // 2), NullObserver()
    ) as engine:
        for turn in range(200):
            jobs = [ask(engine, (turn + i) % 8) for i in range(4)]
            expected = [float((turn + i) % 8) for i in range(4)]
            assert await asyncio.gather(*jobs) == expected
        snapshot = await engine.snapshot()
        assert snapshot.evictions > 100
        assert snapshot.peak_held <= snapshot.capacity
        assert snapshot.measured is not None
    gc.collect()
    assert torch.cuda.memory_allocated() <= before


async def played(engine, index: int) -> None:
    """Ask until calls are played from a recording."""
    recordings = engine._batcher._ways._recordings
    while not any(shelf.recordings for shelf in recordings._shelves.values()):
        assert await ask(engine, index) == index


@pytest.fixture
def recorded(monkeypatch) -> None:
    """Whether or not it pays: that is another question on each machine."""
    monkeypatch.setattr("runtime.recordings.GAIN", 0.0)


@pytest.mark.timeout(120)
@pytest.mark.usefixtures("recorded")
async def test_recorded_calls_give_the_asked_model_s_answers(tmp_path: Path) -> None:
    """One after the other, together, and while models leave and come back."""
    for index in range(8):
        tiny_models.linear(tmp_path, f"m{index}", index, extra=MIB)
    chance = random.Random(1)
    async with composed(
        settings(tmp_path, 6 * MIB + MIB // 2), NullObserver()
    ) as engine:
        await played(engine, 1)
        for _ in range(300):
            asked = [chance.randrange(8) for _ in range(chance.randint(1, 5))]
            got = await asyncio.gather(*(ask(engine, index) for index in asked))
            assert got == [float(index) for index in asked]
        recordings = engine._batcher._ways._recordings
        (shelf,) = recordings._shelves.values()
        assert sum(r.calls for r in shelf.recordings.values()) > 100
        assert (await engine.snapshot()).evictions > 10


@pytest.mark.timeout(120)
@pytest.mark.usefixtures("recorded")
async def test_a_transformer_is_recorded_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    net = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    x = torch.randn(4, 5, 16)
    write(export(net, {"x": x}), tmp_path / "m1" / "1")
    async with composed(settings(tmp_path, 64 * MIB), NullObserver()) as engine:
        recordings = engine._batcher._ways._recordings
        for rows in (1, 3, 4) * 40:
            answer = await engine.predict(Request("m1", {"x": x[:rows]}))
            with torch.inference_mode():
                wanted = net(x[:rows])
            torch.testing.assert_close(
                answer.outputs[0][1], wanted, atol=1e-4, rtol=1e-4
            )
            if recordings._trying is not None:
                await asyncio.wait([recordings._trying])
        (shelf,) = recordings._shelves.values()
        assert len(shelf.recordings) == 2  # one row; three and four


@pytest.mark.timeout(60)
async def test_a_model_too_large_for_the_device_is_a_typed_error(
    tmp_path: Path,
) -> None:
    tiny_models.linear(tmp_path, "m0", 1)
    free, _ = torch.cuda.mem_get_info()
    hog = torch.empty(free - 64 * MIB, dtype=torch.uint8, device="cuda:0")
    async with composed(settings(tmp_path, MIB), NullObserver()) as engine:
        assert (await engine.snapshot()).capacity <= 64 * MIB
    del hog
    torch.cuda.empty_cache()
