"""The arena, the staging pool and the host tier on a real device."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from loader.host import HostTier
from loader.load import Loader
from loader.memory import BOUNCE, CudaMemory
from loader.pool import SLOT
from loader.store import Store
from tests import tiny_models
from tests.test_tiers import Bench

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(120)]
DEVICE = torch.device("cuda:0")
X = torch.ones(1, 4)


def answer(model) -> float:
    (y,) = model.forward((X.to(DEVICE),))
    return y[0, 0].item()


def on_gpu(bench: Bench, host: HostTier | None, threads) -> Loader:
    from loader.graphs import GraphShelf

    store = Store.open(str(bench.folder))
    shelf = GraphShelf(store, DEVICE, threads)
    loader = Loader(
        store, shelf, CudaMemory(DEVICE), threads,
        capacity=lambda: bench.capacity, host=host,
    )  # fmt: skip
    loader.idle = lambda key: True
    return loader


async def test_every_byte_arrives_and_comes_back_from_the_host_tier(
    tmp_path: Path,
) -> None:
    with ThreadPoolExecutor(2) as threads:
        bench = Bench(tmp_path, threads)
        tiny_models.linear(tmp_path, "m", 3, extra=5 * SLOT + 77)
        data = (tmp_path / "m" / "1" / "model.safetensors").read_bytes()
        host = HostTier(64 << 20, DEVICE, threads)
        host.reserve()
        loader = on_gpu(bench, host, threads)
        for tier in ("store", "host"):
            model = await loader.load(bench.spec("m"))
            assert model.tier == tier
            buffer = loader.slabs.buffer(model.block)[: model.placed.placing.nbytes]
            start = model.placed.layout.data_start
            assert bytes(buffer.cpu().numpy()) == data[start:]
            assert answer(model) == 3
            await loader.unload(model)
        host.close()
        loader.slabs.close()


async def test_compaction_moves_by_device_copies(tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as threads:
        bench = Bench(tmp_path, threads)
        for index in range(4):
            tiny_models.linear(tmp_path, f"m{index}", index, extra=BOUNCE + 1000)
        tiny_models.linear(tmp_path, "big", 99, extra=2 * BOUNCE)
        loader = on_gpu(bench, None, threads)
        bench.capacity = 4 * loader.size(bench.spec("m0"))
        models = [await loader.load(bench.spec(f"m{index}")) for index in range(4)]
        await loader.unload(models[0])
        await loader.unload(models[2])
        big = await loader.load(bench.spec("big"))
        assert [answer(m) for m in (models[1], models[3], big)] == [1, 3, 99]
        assert loader.tiers().space.compactions == 1
        assert loader.tiers().space.reserved <= bench.capacity


async def test_an_empty_arena_gives_the_device_back(tmp_path: Path) -> None:
    torch.cuda.empty_cache()  # or what earlier tests gave back is taken first
    before = torch.cuda.memory_reserved()
    with ThreadPoolExecutor(2) as threads:
        bench = Bench(tmp_path, threads)
        tiny_models.linear(tmp_path, "m", 3)
        loader = on_gpu(bench, None, threads)
        model = await loader.load(bench.spec("m"))
        assert torch.cuda.memory_reserved() >= before + bench.capacity
        await loader.unload(model)
        bench.capacity = 0
        loader.slabs.shrink()
        assert torch.cuda.memory_reserved() <= before
