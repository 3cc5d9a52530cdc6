"""From a store to a model in memory, and every way that can go wrong."""

import asyncio
import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from loader import ranges
from loader.errors import ArtifactRefused, DeviceFull, LoadFailed, StoreUnreachable
from loader.graphs import GraphShelf
from loader.load import Loader
from loader.manifest import ModelSpec, read_manifest
from loader.memory import HostMemory
from loader.store import Store
from tests import tiny_models

CPU = torch.device("cpu")


class CountingStore(Store):
    """A real store that remembers what it was asked, and can be told to misbehave."""

    def __init__(self, folder: Path) -> None:
        inner = Store.open(str(folder))
        super().__init__(inner._backend, inner.scheme)
        self.asked: list[str] = []
        self.before_part = None

    async def small(self, path, limit=1 << 20):
        self.asked.append(path)
        return await super().small(path, limit)

    async def part(self, path, start, end, etag=None):
        self.asked.append(f"{path}[{start}:{end}]")
        if self.before_part is not None:
            await self.before_part(start)
        return await super().part(path, start, end, etag)


class Bench:
    def __init__(self, folder: Path, threads: ThreadPoolExecutor) -> None:
        self.folder = folder
        self.store = CountingStore(folder)
        self.memory = HostMemory()
        self.shelf = GraphShelf(self.store, CPU, threads)
        self.loader = Loader(self.store, self.shelf, self.memory, threads, timeout=5)

    def spec(self, name: str, version: str = "1") -> ModelSpec:
        data = (self.folder / name / version / "model.json").read_bytes()
        spec = read_manifest(data, name, version)
        return _with_directory(spec, f"{name}/{version}")

    def held(self) -> int:
        return self.loader.slabs.arena.held


def _with_directory(spec: ModelSpec, directory: str) -> ModelSpec:
    return dataclasses.replace(spec, directory=directory)


@pytest.fixture
def bench(tmp_path: Path):
    with ThreadPoolExecutor(2) as threads:
        yield Bench(tmp_path, threads)


async def test_a_model_answers_and_its_size_is_exact(bench: Bench) -> None:
    tiny_models.linear(bench.folder, "m", 3)
    spec = bench.spec("m")
    model = await bench.loader.load(spec)
    (y,) = model.forward((torch.ones(2, 4),))
    assert y.tolist() == [[3.0] * 4] * 2
    assert model.nbytes == 256, "80 bytes, as the arena rounds them"
    assert model.nbytes <= bench.loader.size(spec)
    assert set(model.phases) == {"fetch", "verify", "copy"}


async def test_weights_are_views_into_one_buffer(bench: Bench) -> None:
    tiny_models.linear(bench.folder, "m")
    model = await bench.loader.load(bench.spec("m"))
    assert len({w.untyped_storage().data_ptr() for w in model.weights}) == 1


async def test_a_graph_is_fetched_once_for_all_its_models(bench: Bench) -> None:
    for index in range(5):
        tiny_models.linear(bench.folder, f"m{index}", index)
    specs = [bench.spec(f"m{index}") for index in range(5)]
    models = await asyncio.gather(*(bench.loader.load(spec) for spec in specs))
    assert len({id(model.graph) for model in models}) == 1
    assert sum(path.endswith("graph.json") for path in bench.store.asked) == 1
    for index, model in enumerate(models):
        (y,) = model.forward((torch.ones(1, 4),))
        assert y[0, 0] == index


async def test_a_small_model_takes_one_request_for_its_weights(bench: Bench) -> None:
    tiny_models.linear(bench.folder, "m")
    await bench.loader.load(bench.spec("m"))
    assert sum("safetensors" in path for path in bench.store.asked) == 1


async def test_a_large_model_comes_in_ranges(bench: Bench) -> None:
    tiny_models.linear(bench.folder, "m", 7, extra=ranges.CHUNK * 2 + 12345)
    model = await bench.loader.load(bench.spec("m"))
    assert sum("safetensors" in path for path in bench.store.asked) == 3
    (y,) = model.forward((torch.ones(1, 4),))
    assert y[0, 0] == 7


async def test_misaligned_tensors_are_put_where_they_can_be_read(bench: Bench) -> None:
    """A safetensors file may start a float32 at any byte."""
    header = {
        "w": {"dtype": "F32", "shape": [4, 4], "data_offsets": [3, 67]},
        "b": {"dtype": "F32", "shape": [4], "data_offsets": [67, 83]},
        "__pad0": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]},
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    body = b"abc" + (torch.eye(4) * 5).numpy().tobytes() + bytes(16)
    data = len(text).to_bytes(8, "little") + text + body
    made = tiny_models.files()
    manifest = json.loads(made["model.json"])
    manifest["weights"] = tiny_models.ref("model.safetensors", data)
    made["model.safetensors"] = data
    made["model.json"] = json.dumps(manifest).encode()
    tiny_models.write(bench.folder / "m" / "1", made)
    spec = bench.spec("m")
    model = await bench.loader.load(spec)
    (y,) = model.forward((torch.ones(1, 4),))
    assert y[0].tolist() == [5.0] * 4
    assert model.nbytes <= bench.loader.size(spec)


async def test_unload_frees_the_bytes(bench: Bench) -> None:
    tiny_models.linear(bench.folder, "m")
    model = await bench.loader.load(bench.spec("m"))
    assert bench.held() == model.nbytes
    await bench.loader.unload(model)
    assert bench.held() == 0


def _flip(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


BREAKS = {
    "a flipped bit": ("model.safetensors", _flip, "SHA-256"),
    "cut short": ("model.safetensors", lambda d: d[:-8], "bytes, model.json says"),
    "a byte too many": ("model.safetensors", lambda d: d + b"\0", "model.json says"),
    "an HTML page": ("model.safetensors", lambda d: b"<html>".ljust(len(d)), "model.s"),
    "a flipped bit in the graph": ("graph.json", _flip, "SHA-256"),
    "no weights": ("model.safetensors", None, "missing from the store"),
    "no graph": ("graph.json", None, "missing from the store"),
}


@pytest.mark.parametrize("case", BREAKS)
async def test_wrong_bytes_are_refused_and_nothing_stays(
    bench: Bench, case: str
) -> None:
    name, change, said = BREAKS[case]
    tiny_models.linear(bench.folder, "m")
    spec = bench.spec("m")
    path = bench.folder / "m" / "1" / name
    if change is None:
        path.unlink()
    else:
        path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ArtifactRefused) as refused:
        await bench.loader.load(spec)
    assert said in refused.value.message
    assert name in refused.value.message
    assert str(bench.folder) not in refused.value.message
    assert bench.held() == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda g: g["weights"][1].update(shape=[2, 8]), "the graph wants float32[2"),
        (lambda g: g["weights"][0].update(dtype="float64"), "wants float64"),
        (lambda g: g["weights"][0].update(name="c"), "'c' of the graph is missing"),
        (lambda g: g["outputs"][0].update(name="z"), "the graph's are z"),
    ],
)
async def test_files_that_do_not_fit_each_other(bench: Bench, change, said) -> None:
    graph = json.loads(json.dumps(tiny_models.GRAPH))
    change(graph)
    if graph["weights"][0]["name"] == "c":
        graph["nodes"][0]["args"][2] = {"weight": "c"}
    data = json.dumps(graph).encode()
    made = tiny_models.files(graph=tiny_models.ref("graph.json", data))
    tiny_models.write(bench.folder / "m" / "1", {**made, "graph.json": data})
    with pytest.raises(ArtifactRefused) as refused:
        await bench.loader.load(bench.spec("m"))
    assert said in refused.value.message


async def test_a_file_replaced_while_it_is_read_is_never_mixed(bench: Bench) -> None:
    tiny_models.linear(bench.folder, "m", 1, extra=ranges.CHUNK * 2)
    spec = bench.spec("m")

    async def replace(start: int) -> None:
        if start == ranges.CHUNK:
            tiny_models.linear(bench.folder, "m", 2, extra=ranges.CHUNK * 2)

    bench.store.before_part = replace
    with pytest.raises(LoadFailed) as failed:
        await bench.loader.load(spec)
    assert isinstance(failed.value, (StoreUnreachable, ArtifactRefused))


async def test_a_hanging_store_ends_in_a_typed_error(bench: Bench) -> None:
    tiny_models.linear(bench.folder, "m")
    hangs = asyncio.Event()
    bench.store.before_part = lambda start: hangs.wait()
    bench.loader._timeout = 0.05
    with pytest.raises(StoreUnreachable, match="took longer than"):
        await bench.loader.load(bench.spec("m"))
    assert bench.held() == 0


@pytest.mark.parametrize("stage", [0, ranges.CHUNK])
async def test_a_cancelled_load_gives_everything_back(bench: Bench, stage: int) -> None:
    tiny_models.linear(bench.folder, "m", extra=ranges.CHUNK * 3)
    reached, hangs = asyncio.Event(), asyncio.Event()

    async def wait(start: int) -> None:
        if start >= stage:
            reached.set()
            await hangs.wait()

    bench.store.before_part = wait
    task = asyncio.create_task(bench.loader.load(bench.spec("m")))
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert bench.held() == 0
    await bench.shelf.aclose()  # the graph was not only for us
    assert {t for t in asyncio.all_tasks() if t is not asyncio.current_task()} == set()


async def test_a_full_device_is_a_typed_error(bench: Bench) -> None:
    tiny_models.linear(bench.folder, "m")

    class Full(HostMemory):
        def slab(self, nbytes):
            return super().slab(1 << 60)

    bench.loader.slabs.memory = Full()
    with pytest.raises(DeviceFull):
        await bench.loader.load(bench.spec("m"))


async def test_the_first_to_ask_for_a_graph_may_leave(bench: Bench) -> None:
    """The others still get it, from the same fetch."""
    tiny_models.linear(bench.folder, "a", 1)
    tiny_models.linear(bench.folder, "b", 2)
    first = asyncio.create_task(bench.shelf.get(bench.spec("a")))
    await asyncio.sleep(0)
    second = asyncio.create_task(bench.shelf.get(bench.spec("b")))
    await asyncio.sleep(0)
    first.cancel()
    graph = await second
    assert graph.inputs == ("x",)
    assert sum(path.endswith("graph.json") for path in bench.store.asked) == 1
