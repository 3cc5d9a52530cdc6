"""A model's way down and back up: arena, host tier, disk tier, store."""

import asyncio
import contextlib
import json
import os
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import save

from loader import arena, files, fill, nearness, ranges
from loader import spool as spool_module
from loader.digest import FileRef
from loader.errors import ArtifactRefused, DeviceFull, LoadFailed, StoreUnreachable
from loader.folder import Folder
from loader.graphs import GraphShelf
from loader.host import HostTier
from loader.keeping import Keeping
from loader.load import Loader
from loader.memory import HostMemory, mapped
from loader.pool import SLOT, host_pool
from loader.ranges import CHUNK
from loader.slab import GRANULE
from loader.spool import Spool
from runtime.compose import composed
from runtime.engine import Request
from runtime.observer import NullObserver
from runtime.sources import load as settings_of
from tests import tiny_models
from tests.test_load import CPU, CountingStore, _with_directory, read_manifest

X = torch.ones(1, 4)


class Solid(HostMemory):
    """Host memory that is there as a whole, as a GPU's is."""

    lazy = False


class DistantMemory(HostMemory):
    """Host memory that may be reached through the staging pool only, as on a GPU."""

    direct = False


class Bench:
    """A loader with tiers. `capacity` may be changed at any time."""

    def __init__(self, folder: Path, threads, **tiers) -> None:
        self.folder = folder
        self.capacity = 64 << 20
        self.store = CountingStore(folder)
        self.shelf = GraphShelf(self.store, CPU, threads, spool=tiers.get("spool"))
        self.told: list[tuple[str, int]] = []
        self.loader = Loader(
            self.store,
            self.shelf,
            tiers.pop("memory", HostMemory()),
            threads,
            timeout=5,
            capacity=lambda: self.capacity,
            told=lambda tier, nbytes, seconds, key: self.told.append((tier, nbytes)),
            **tiers,
        )
        self.busy: set[str] = set()
        self.loader.idle = lambda key: key not in self.busy

    def spec(self, name: str):
        data = (self.folder / name / "1" / "model.json").read_bytes()
        return _with_directory(read_manifest(data, name, "1"), f"{name}/1")

    async def load(self, name: str):
        return await self.loader.load(self.spec(name))

    def fetched(self) -> int:
        return sum("safetensors" in path for path in self.store.asked)


def answer(model) -> float:
    (y,) = model.forward((X,))
    return y[0, 0].item()


@pytest.fixture
def threads():
    with ThreadPoolExecutor(2) as pool:
        yield pool


@pytest.fixture
def bench(tmp_path: Path, threads):
    return Bench(tmp_path, threads)


@contextlib.contextmanager
def spooled(folder: Path, capacity: int = 1 << 30):
    spool = Spool(folder, capacity)
    spool.flush()
    try:
        yield spool
    finally:
        spool.close()


@pytest.fixture
def solid(tmp_path: Path, threads):
    return Bench(tmp_path, threads, memory=Solid())


# -- the arena ------------------------------------------------------------------------


async def test_fragmentation_is_compacted_and_moved_models_answer_right(solid) -> None:
    """Every other model leaves; one twice as large fits only if the others move."""
    for index in range(8):
        tiny_models.linear(solid.folder, f"m{index}", index, extra=4096)
    tiny_models.linear(solid.folder, "big", 99, extra=3 * 4096)
    one = solid.loader.size(solid.spec("m0"))
    models = {}
    solid.capacity = 8 * one
    for index in range(8):
        models[index] = await solid.load(f"m{index}")
    for index in range(0, 8, 2):
        await solid.loader.unload(models.pop(index))
    assert solid.loader.slabs.arena.fragmentation > 0.5
    big = await solid.load("big")
    assert answer(big) == 99
    assert {index: answer(model) for index, model in models.items()} == {
        index: float(index) for index in models
    }
    space = solid.loader.tiers().space
    assert space.compactions == 1
    assert space.moved_bytes > 0
    assert space.reserved <= solid.capacity


async def test_a_model_in_use_is_not_moved(solid) -> None:
    for index in range(3):
        tiny_models.linear(solid.folder, f"m{index}", index, extra=4096)
    tiny_models.linear(solid.folder, "big", 99, extra=8192)
    solid.capacity = 3 * solid.loader.size(solid.spec("m0"))
    models = [await solid.load(f"m{index}") for index in range(3)]
    addresses = models[1].weights[0].data_ptr()
    solid.busy.add(models[1].spec.key)
    await solid.loader.unload(models[0])
    await solid.loader.unload(models[2])
    solid.loader.slabs.patience = 0
    with pytest.raises(DeviceFull, match="in one piece"):
        await solid.load("big")
    assert models[1].weights[0].data_ptr() == addresses
    solid.busy.clear()
    assert answer(await solid.load("big")) == 99
    assert answer(models[1]) == 1


async def test_room_that_is_in_pieces_for_a_moment_is_waited_for(solid) -> None:
    """A call ends, and its model may be moved; a neighbour that was on its way is
    there; one that was to stay leaves. Each opens what was free all the time."""
    for index in range(3):
        tiny_models.linear(solid.folder, f"m{index}", index, extra=4096)
    tiny_models.linear(solid.folder, "big", 99, extra=8192)
    solid.capacity = 3 * solid.loader.size(solid.spec("m0"))
    slabs = solid.loader.slabs
    for how in ("the call ends", "it is there", "it leaves"):
        models = [await solid.load(f"m{index}") for index in range(3)]
        middle = models[1]
        if how == "it is there":
            del solid.loader._models[middle.block]  # as while it is being filled
        else:
            solid.busy.add(middle.spec.key)
        await solid.loader.unload(models[0])
        await solid.loader.unload(models[2])
        looked = asyncio.Event()
        in_one_piece = slabs._in_one_piece

        async def look(nbytes, group, _look=in_one_piece, _looked=looked):
            block = await _look(nbytes, group)
            _looked.set()
            return block

        slabs._in_one_piece = look
        coming = asyncio.create_task(solid.load("big"))
        await looked.wait()
        assert not coming.done()
        if how == "the call ends":
            solid.busy.clear()
        elif how == "it is there":
            solid.loader._models[middle.block] = middle
            slabs.at_rest()
        else:
            await solid.loader.unload(middle)
            solid.busy.clear()
        big = await coming
        slabs._in_one_piece = in_one_piece
        assert answer(big) == 99
        if how != "it leaves":
            assert answer(middle) == 1
            await solid.loader.unload(middle)
        await solid.loader.unload(big)


async def test_who_waits_for_room_leaves_the_loop_to_others(solid, monkeypatch) -> None:
    """A look over a thousand blocks takes milliseconds: not at every block that goes,
    and not by every load that waits."""
    for index in range(3):
        tiny_models.linear(solid.folder, f"m{index}", index, extra=4096)
    tiny_models.linear(solid.folder, "big", 99, extra=8192)
    solid.capacity = 3 * solid.loader.size(solid.spec("m0"))
    slabs, looks = solid.loader.slabs, []
    models = [await solid.load(f"m{index}") for index in range(3)]
    solid.busy.add(models[1].spec.key)
    await solid.loader.unload(models[0])
    await solid.loader.unload(models[2])

    def plan(*given) -> None:
        looks.append(time.perf_counter())
        time.sleep(0.005)

    monkeypatch.setattr("loader.compaction.plan", plan)
    coming = asyncio.create_task(solid.load("big"))
    began = time.perf_counter()
    while (now := time.perf_counter()) - began < 0.5:
        slabs.at_rest()
        await asyncio.sleep(0.001)
    coming.cancel()
    await asyncio.wait((coming,))
    assert 1 < len(looks) < (now - began) / 0.04


@pytest.mark.parametrize("seed", range(2))
async def test_a_full_arena_in_pieces_refuses_nobody(tmp_path, seed, monkeypatch):
    """As on a GPU: addresses are as scarce as bytes. Four callers load at a time, one
    model is always in use, sizes differ by 30 and hardly a byte is free."""
    chance = random.Random(seed)
    monkeypatch.setattr("runtime.loading.memory_on", lambda device: Solid())
    nbytes = [
        chance.choice([1, 2, 4, 8, 16, 32]) * 40_000 + chance.randrange(20_000)
        for _ in range(60)
    ]
    for index, extra in enumerate(nbytes):
        tiny_models.linear(tmp_path, f"m{index}", index, extra=extra)
    flags = {
        "store": str(tmp_path), "device": "cpu", "loader": "threads",
        "budget": str(sum(nbytes) // 4), "reserve": "0",
    }  # fmt: skip
    async with composed(settings_of(flags, None, {}), NullObserver()) as engine:

        async def ask(index: int) -> None:
            given = await engine.predict(Request(f"m{index}", {"x": X}))
            assert given.outputs[0][1][0, 0].item() == index

        async def caller() -> None:
            for _ in range(250):
                await ask(chance.randrange(60))

        async def always(stop: asyncio.Event) -> None:
            while not stop.is_set():
                await ask(0)
                await asyncio.sleep(0)  # a short call never waits

        stop = asyncio.Event()
        hot = asyncio.create_task(always(stop))
        await asyncio.gather(*(caller() for _ in range(4)))
        stop.set()
        await hot
        snapshot = await engine.snapshot()
    assert snapshot.tiers.space.compactions > 20
    assert snapshot.peak_held <= snapshot.capacity


async def test_the_arena_never_reserves_more_than_it_may(solid) -> None:
    solid.capacity = 1000 * GRANULE
    for index in range(20):
        tiny_models.linear(solid.folder, f"m{index}", index)
    models = [await solid.load(f"m{index}") for index in range(20)]
    arena = solid.loader.slabs.arena
    assert arena.held == sum(m.nbytes for m in models) == 20 * GRANULE
    assert arena.reserved == solid.capacity
    strides = {b.start - a.start for a, b in zip(models[0].block.slab.blocks,
                                                 models[0].block.slab.blocks[1:],
                                                 strict=False)}  # fmt: skip
    assert strides == {GRANULE}, "models of one graph lie at a constant stride"
    for model in models:
        await solid.loader.unload(model)
    solid.capacity = 0
    solid.loader.slabs.shrink()
    assert arena.reserved == 0


async def test_pages_go_back_when_the_capacity_shrinks(bench) -> None:
    """Really: the process has so much less."""
    tiny_models.linear(bench.folder, "small", 1)
    tiny_models.linear(bench.folder, "large", 2, extra=16 << 20)
    small, large = await bench.load("small"), await bench.load("large")
    process = psutil.Process()
    before = process.memory_info().rss
    await bench.loader.unload(large)
    assert bench.loader.slabs.arena.touched > 16 << 20
    bench.capacity = 4096
    bench.loader.slabs.shrink()
    assert bench.loader.slabs.arena.touched == small.nbytes
    assert answer(small) == 1, "what is in use stays"
    await bench.loader.unload(small)
    bench.loader.slabs.close()  # waits for the thread that gives them back
    assert process.memory_info().rss < before - (12 << 20)


async def test_an_output_never_lies_in_the_arena(bench) -> None:
    """A graph may give back a weight. The answer is the caller's for good."""
    op = {"name": "y", "op": "aten.t.default", "args": [{"weight": "w"}]}
    data = json.dumps({**tiny_models.GRAPH, "nodes": [op]}).encode()
    made = tiny_models.files(3, graph=tiny_models.ref("graph.json", data))
    tiny_models.write(bench.folder / "m" / "1", {**made, "graph.json": data})
    model = await bench.load("m")
    (y,) = model.forward((X,))
    assert y.data_ptr() != model.weights[1].data_ptr()
    await bench.loader.unload(model)
    tiny_models.linear(bench.folder, "other", 7)
    other = await bench.load("other")
    assert other.block.start == 0
    assert y[0, 0] == 3


async def test_a_slab_is_emptied_into_others_when_the_capacity_shrinks(
    tmp_path, threads, monkeypatch
) -> None:
    """Memory that is not lazy goes back a whole slab at a time."""

    monkeypatch.setattr(arena, "ONE_SLAB", 8192)
    bench = Bench(tmp_path, threads, memory=Solid())
    for index in range(12):
        tiny_models.linear(tmp_path, f"m{index}", index, extra=1700)
    bench.capacity = 3 * 8192
    models = {index: await bench.load(f"m{index}") for index in range(12)}
    space = bench.loader.slabs.arena
    assert len(space.slabs) == 3
    for index in (0, 1, 5, 8, 9, 10):
        await bench.loader.unload(models.pop(index))
    bench.busy.update(model.spec.key for model in models.values())
    bench.capacity = 2 * 8192
    bench.loader.slabs.shrink()
    assert len(space.slabs) == 3, "all are in use just now"
    bench.busy.clear()
    bench.loader.slabs.shrink()
    assert len(space.slabs) == 2
    assert space.reserved <= bench.capacity
    for index, model in models.items():
        assert answer(model) == index


# -- one pass -------------------------------------------------------------------------


@pytest.mark.parametrize("memory", [HostMemory, DistantMemory])
@pytest.mark.parametrize("extra", [0, SLOT - 300, SLOT * 3 + 17, CHUNK + 5])
@pytest.mark.parametrize("chunks", [False, True])
async def test_every_byte_arrives_whatever_way_it_goes(
    tmp_path, threads, memory, extra, chunks, monkeypatch
) -> None:
    """Straight into place or through the pool, from a socket or from a file, by one
    thread or, where chunks allow it, by two."""
    monkeypatch.setattr(fill, "THREADS", 2)
    rng = random.Random(extra)
    noise = rng.randbytes(extra)
    tensors = {"w": torch.eye(4) * 3, "b": torch.zeros(4)}
    if extra:
        tensors["__pad0"] = torch.frombuffer(bytearray(noise), dtype=torch.uint8)
    data = save(tensors)
    made = tiny_models.files(weights=tiny_models.ref("model.safetensors", data))
    made = {**made, "model.safetensors": data}
    made = tiny_models.by_chunks(made) if chunks else made
    tiny_models.write(tmp_path / "m" / "1", made)
    remote = Bench(tmp_path, threads, memory=memory())
    local = Bench(tmp_path, threads, memory=memory())
    local.store._folder = Folder(tmp_path)
    for bench in (remote, local):
        model = await bench.load("m")
        buffer = bench.loader.slabs.buffer(model.block)
        placed = model.placed
        assert (
            bytes(buffer[: placed.placing.nbytes].numpy())
            == (data[placed.layout.data_start :])
        )
        assert answer(model) == 3
    assert remote.fetched() == -(-len(data) // CHUNK)
    assert local.fetched() == 0, "a local file is read, not asked for"


@pytest.mark.parametrize("memory", [HostMemory, DistantMemory])
@pytest.mark.parametrize("chunks", [False, True])
async def test_a_header_larger_than_a_slot_is_verified_whole(
    tmp_path, threads, memory, chunks
) -> None:
    tensors = {"w": torch.eye(4) * 3, "b": torch.zeros(4)}
    data = save(tensors, metadata={"why": "y" * (2 * SLOT + 100)})
    made = tiny_models.files(weights=tiny_models.ref("model.safetensors", data))
    made = {**made, "model.safetensors": data}
    tiny_models.write(
        tmp_path / "m" / "1", tiny_models.by_chunks(made) if chunks else made
    )
    for folder in (None, Folder(tmp_path)):
        bench = Bench(tmp_path, threads, memory=memory())
        bench.store._folder = folder
        assert answer(await bench.load("m")) == 3


async def test_a_known_file_is_asked_for_under_its_etag_all_at_once(bench) -> None:
    tiny_models.linear(bench.folder, "m", 1, extra=3 * CHUNK)
    etags, under_way, most = [], 0, 0
    part = bench.store.part

    async def watched(path, start, end, etag=None):
        nonlocal under_way, most
        etags.append(etag)
        under_way += 1
        most = max(most, under_way)
        try:
            return await part(path, start, end, etag)
        finally:
            under_way -= 1

    bench.store.part = watched
    await bench.loader.unload(await bench.load("m"))
    assert most == 4
    assert etags == [None] * 4
    await bench.load("m")
    assert None not in etags[4:]


async def test_a_changed_object_is_asked_for_once_more(bench) -> None:
    """Written anew with the same bytes: another ETag, the same model."""
    tiny_models.linear(bench.folder, "m", 1)
    await bench.loader.unload(await bench.load("m"))
    path = bench.folder / "m" / "1" / "model.safetensors"
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data)
    assert answer(await bench.load("m")) == 1
    assert bench.fetched() == 3


async def test_all_models_together_are_bounded(bench) -> None:
    for index in range(40):
        tiny_models.linear(bench.folder, f"m{index}", index)
    under_way = most = 0
    part = bench.store.part

    async def watched(*args):
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0)
        try:
            return await part(*args)
        finally:
            under_way -= 1

    bench.store.part = watched
    await asyncio.gather(*(bench.load(f"m{index}") for index in range(40)))
    assert most == ranges.PARALLEL_ALL


class Silent:
    """A store that is asked and does not answer; `asked`: the ranges."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []

    async def part(self, path, start, end, etag):
        self.asked.append((start, end))
        await asyncio.Event().wait()


async def test_a_near_store_is_asked_for_fewer_ranges() -> None:
    """Near is whose quickest answers begin at once, however slow the others are."""
    size = 200 << 20
    digests = tuple(bytes(32) for _ in range(25))
    weights = SimpleNamespace(
        name="w", size=size, identity="x", chunks=SimpleNamespace(digests=digests)
    )
    spec = SimpleNamespace(name="m", directory="m/1", weights=weights)
    store = Silent()
    reader = ranges.Ranges(store)

    async def asked() -> list[tuple[int, int]]:
        store.asked.clear()
        async with reader.reading(spec):
            await asyncio.sleep(0)
            return sorted(store.asked)

    far, mib = await asked(), 1 << 20
    assert len(far) == 7
    reader.nearness.began(nearness.NEAR_S / 5)
    for _ in range(10):
        reader.nearness.began(nearness.NEAR_S * 2)  # the others, beside it
    near = await asked()
    assert near == [(0, 72 * mib), (72 * mib, 144 * mib), (144 * mib, size)]
    for _ in range(100):
        reader.nearness.began(nearness.NEAR_S * 4)
    assert await asked() == far


@pytest.mark.parametrize("chunks", [False, True])
async def test_a_local_file_that_is_wrong_is_refused(bench, chunks) -> None:
    bench.store._folder = Folder(bench.folder)
    tiny_models.linear(bench.folder, "m", 1, chunks=chunks)
    spec = bench.spec("m")
    path = bench.folder / "m" / "1" / "model.safetensors"
    data = path.read_bytes()
    for wrong, said in (
        (data[:-1] + b"!", "BLAKE3 of chunk 0" if chunks else "SHA-256"),
        (data + b"!", "model.json says"),
        (data[:-9], "model.json says"),
        (b"<html>".ljust(len(data)), "safetensors"),
    ):
        path.write_bytes(wrong)
        with pytest.raises(ArtifactRefused, match=said):
            await bench.loader.load(spec)
    path.unlink()
    with pytest.raises(ArtifactRefused, match="missing"):
        await bench.loader.load(spec)
    path.mkdir()
    with pytest.raises(LoadFailed):
        await bench.loader.load(spec)
    assert bench.loader.slabs.arena.held == 0


@pytest.mark.parametrize("chunks", [False, True])
async def test_a_header_that_changed_since_it_was_read_places_nothing(
    bench, monkeypatch, chunks
) -> None:
    """Where the bytes go was said by a header that came before them. Whatever becomes
    of the file meanwhile, bytes that verify never lie where another header put them."""
    bench.store._folder = Folder(bench.folder)
    header = files._header
    tiny_models.linear(bench.folder, "m", 1, extra=CHUNK, chunks=chunks)

    def swapped(fd: int) -> bytes:
        return header(fd).replace(b'"b"', b'"B"')

    monkeypatch.setattr(files, "_header", swapped)
    with pytest.raises(StoreUnreachable, match="changed in the store while"):
        await bench.load("m")
    assert bench.loader.slabs.arena.held == 0


@pytest.mark.parametrize("chunks", [False, True])
async def test_a_file_that_was_here_before_is_verified_all_the_same(
    bench, chunks
) -> None:
    """What is remembered of it is where its bytes go, not that they are right."""
    bench.store._folder = Folder(bench.folder)
    tiny_models.linear(bench.folder, "m", 1, chunks=chunks)
    spec = bench.spec("m")
    path = bench.folder / "m" / "1" / "model.safetensors"
    data = path.read_bytes()
    await bench.loader.unload(await bench.loader.load(spec))
    header = data.replace(b'"b"', b'"B"')
    for wrong, said in (
        (data[:-1] + b"!", "BLAKE3 of chunk 0" if chunks else "SHA-256"),
        (header, "BLAKE3 of chunk 0" if chunks else "SHA-256"),
        (data + b"!", "model.json says"),
    ):
        path.write_bytes(wrong)
        with pytest.raises(ArtifactRefused, match=said):
            await bench.loader.load(spec)
    path.unlink()
    with pytest.raises(ArtifactRefused, match="missing"):
        await bench.loader.load(spec)
    path.write_bytes(data)
    assert answer(await bench.loader.load(spec)) == 1


def test_a_ring_gives_its_slots_in_turn() -> None:
    pool = host_pool(1)
    target = np.zeros(10 * SLOT, dtype=np.uint8)
    with pool.ring() as ring:
        seen = []
        for index in range(10):
            slot = ring.slot()
            seen.append(slot.ctypes.data)
            slot.fill(index)
            ring.push(0, SLOT, target, index * SLOT)
    assert len(set(seen)) == 4
    assert target[::SLOT].tolist() == list(range(10))


def test_host_memory_that_is_not_there_is_a_typed_error() -> None:
    with pytest.raises(DeviceFull):
        mapped(1 << 62)


# -- the host tier --------------------------------------------------------------------


@pytest.fixture
def hosted(tmp_path, threads):
    host = HostTier(10 * GRANULE, CPU, threads)
    bench = Bench(tmp_path, threads, host=host)
    yield bench
    host.close()
    assert host.tier().held == 0


async def test_an_evicted_model_comes_back_by_one_copy(hosted) -> None:
    tiny_models.linear(hosted.folder, "m", 5)
    model = await hosted.load("m")
    assert model.tier == "store"
    assert hosted.loader.falls_to(model.spec) == "host"
    await hosted.loader.unload(model)
    (hosted.folder / "m" / "1" / "model.safetensors").unlink()
    again = await hosted.load("m")
    assert (again.tier, answer(again)) == ("host", 5)
    assert set(again.phases) == {"copy"}
    assert hosted.fetched() == 1
    assert hosted.loader.bytes_below(again.spec).keys() == {"host"}
    assert hosted.told == [("store", 256), ("host", 256)]
    assert hosted.loader.tiers().loads == {"store": 1, "host": 1}
    (tier,) = hosted.loader.tiers().below
    assert (tier.hits, tier.misses, tier.held, tier.entries) == (1, 1, 256, 1)


async def test_the_host_tier_drops_who_is_back_first_then_the_oldest(hosted) -> None:
    for index in range(12):
        tiny_models.linear(hosted.folder, f"m{index}", index)
    for index in range(10):
        await hosted.loader.unload(await hosted.load(f"m{index}"))
    await hosted.load("m9")  # resident again: the cheapest to lose
    await hosted.loader.unload(await hosted.load("m10"))
    host = hosted.loader._host
    held = {n for n in range(12) if host.holds(hosted.spec(f"m{n}").weights.sha256)}
    assert held == {*range(9), 10}
    await hosted.loader.unload(await hosted.load("m11"))
    assert not host.holds(hosted.spec("m0").weights.sha256)
    assert host.tier().held <= host.capacity


async def test_what_is_too_large_for_the_host_tier_is_fetched_again(hosted) -> None:
    tiny_models.linear(hosted.folder, "m", 5, extra=1 << 16)
    assert hosted.loader.falls_to(hosted.spec("m")) == "store"
    await hosted.loader.unload(await hosted.load("m"))
    assert (await hosted.load("m")).tier == "store"


async def test_a_manifest_that_lies_of_the_size_gets_no_other_models_copy(
    hosted,
) -> None:
    """What it is booked with is its word; the copy is of another's size."""
    tiny_models.linear(hosted.folder, "m", 5)
    await hosted.loader.unload(await hosted.load("m"))
    honest = hosted.spec("m")
    lie = replace(honest, name="lie", weights=replace(honest.weights, size=100))
    with pytest.raises(ArtifactRefused):
        await hosted.loader.load(lie)
    assert (await hosted.load("m")).tier == "host"


async def test_nothing_is_copied_while_the_server_drains(hosted) -> None:
    tiny_models.linear(hosted.folder, "m", 5)
    model = await hosted.load("m")
    hosted.loader.stop_keeping()
    await hosted.loader.unload(model)
    assert hosted.loader.tiers().below[0].entries == 0


# -- the disk tier --------------------------------------------------------------------


async def test_a_model_comes_back_from_disk_without_the_store(
    tmp_path, threads
) -> None:
    store, cache = tmp_path / "store", tmp_path / "cache"
    tiny_models.linear(store, "m", 5, extra=CHUNK)
    with spooled(cache) as spool:
        bench = Bench(store, threads, spool=spool)
        spec = bench.spec("m")
        assert (await bench.load("m")).tier == "store"
        spool.flush()
    # Another life, and a store that has lost everything but the manifest.
    for name in ("model.safetensors", "graph.json"):
        (store / "m" / "1" / name).unlink()
    with spooled(cache) as spool:
        bench = Bench(store, threads, spool=spool)
        assert bench.loader.falls_to(spec) == "disk"
        model = await bench.load("m")
        assert (model.tier, answer(model)) == ("disk", 5)
        assert bench.store.asked == []


async def test_no_file_is_taken_for_the_one_whose_digest_it_claims(
    tmp_path, threads
) -> None:
    """Whoever may write models may write any SHA-256 into a manifest. With chunks it is
    checked by nobody, so it must not lead to another model's bytes in any tier."""
    victim = tiny_models.files(1)
    liar = tiny_models.by_chunks(tiny_models.files(2))
    theirs, own = (json.loads(made["model.json"]) for made in (victim, liar))
    own["weights"]["sha256"] = theirs["weights"]["sha256"]
    liar["model.json"] = json.dumps(own).encode()
    tiny_models.write(tmp_path / "victim" / "1", victim)
    tiny_models.write(tmp_path / "liar" / "1", liar)
    with spooled(tmp_path / "cache") as spool:
        host = HostTier(1 << 20, CPU, threads)
        bench = Bench(tmp_path, threads, spool=spool, host=host)
        for name, right in (("liar", 2), ("victim", 1), ("liar", 2), ("victim", 1)):
            model = await bench.load(name)
            assert answer(model) == right
            await bench.loader.unload(model)
        spool.flush()
        again = Bench(tmp_path, threads, spool=spool)
        for name, right in (("liar", 2), ("victim", 1)):
            model = await again.load(name)
            assert (model.tier, answer(model)) == ("disk", right)
        host.close()


async def test_loads_at_once_leave_no_more_to_be_written_than_may(
    tmp_path: Path, threads, monkeypatch
) -> None:
    """Both ask before either has its bytes; there is room for one."""
    with spooled(tmp_path / "cache") as spool:
        bench, gate = Bench(tmp_path, threads, spool=spool), threading.Event()
        for index in range(2):
            tiny_models.linear(tmp_path, f"m{index}", index, extra=100_000)
        size = bench.spec("m0").weights.size
        monkeypatch.setattr(spool_module, "PENDING", size + size // 2)
        spool._writer.submit(gate.wait)
        try:
            await asyncio.gather(bench.load("m0"), bench.load("m1"))
            pending = spool._pending
        finally:
            gate.set()
        assert size <= pending <= spool_module.PENDING


@pytest.mark.parametrize("chunks", [False, True])
async def test_a_damaged_file_is_dropped_and_fetched_again(
    tmp_path, threads, chunks
) -> None:
    store, cache = tmp_path / "store", tmp_path / "cache"
    tiny_models.linear(store, "m", 5, chunks=chunks)
    with spooled(cache) as spool:
        bench = Bench(store, threads, spool=spool)
        await bench.loader.unload(await bench.load("m"))
        spool.flush()
        file = cache / bench.spec("m").weights.identity
        good = file.read_bytes()
        for wrong in (good[:-1] + b"!", good[:-1], b"", b"\xff" * len(good)):
            file.write_bytes(wrong)
            model = await bench.load("m")
            assert (model.tier, answer(model)) == ("store", 5)
            await bench.loader.unload(model)
            spool.flush()
            assert file.read_bytes() == good
        assert bench.loader.slabs.arena.held == 0
        assert spool.tier().failures == 2, "another size may be the manifest's lie"
        assert (await bench.load("m")).tier == "disk"


@pytest.mark.parametrize(("kind", "first"), [("local", "preadv"), ("disk", "pread")])
async def test_a_load_cancelled_while_a_file_is_opened_closes_it(
    tmp_path, threads, monkeypatch, kind, first
) -> None:
    store, cache = tmp_path / "store", tmp_path / "cache"
    tiny_models.linear(store, "m", 5)
    started, go_on = threading.Event(), threading.Event()
    read = getattr(os, first)

    def slow(*args):
        started.set()
        go_on.wait(5)
        return read(*args)

    with contextlib.ExitStack() as stack:
        spool = stack.enter_context(spooled(cache)) if kind == "disk" else None
        bench = Bench(store, threads, spool=spool)
        if spool is None:
            bench.store._folder = Folder(store)
        await bench.loader.unload(await bench.load("m"))
        if spool is not None:
            spool.flush()
        before = set(os.listdir("/proc/self/fd"))
        monkeypatch.setattr(os, first, slow)
        task = asyncio.create_task(bench.load("m"))
        await asyncio.to_thread(started.wait, 5)
        task.cancel()
        await asyncio.sleep(0)
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert set(os.listdir("/proc/self/fd")) == before
        assert bench.loader.slabs.arena.held == 0


class Put:
    """A disk tier that wants everything."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []

    def wants(self, digest: str, size: int) -> bool:
        return True

    def put(self, digest: str, parts) -> None:
        self.parts = [bytes(part) for part in parts]


def test_what_was_damaged_is_not_kept() -> None:
    """Ranges come side by side, and each may begin anew at one of its chunks. The disk
    tier once got files without pieces, and dropped each one at its first use."""
    spool = Put()
    keeping = Keeping(spool, FileRef("w", 12, "00" * 32))
    keeping.came(0, [memoryview(b"ab"), memoryview(b"???")])
    keeping.came(8, [memoryview(b"ijkl")])
    keeping.came(5, [memoryview(b"?")])
    keeping.came(8, [])
    keeping.came(4, [memoryview(b"ef")])
    keeping.came(6, [memoryview(b"gh")])
    keeping.came(2, [memoryview(b"cd")])
    keeping.put()
    assert b"".join(spool.parts) == b"abcdefghijkl"
