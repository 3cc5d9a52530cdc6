"""The engine on a real device: right answers, and every byte given back."""

import asyncio
from pathlib import Path

import pytest
import torch

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
    before = torch.cuda.memory_allocated()
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
    assert torch.cuda.memory_allocated() == before


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
