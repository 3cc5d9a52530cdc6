"""The process that brings weights in: what it brings, and what its death costs."""

import asyncio
import contextlib
import json
import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from loader.digest import Chunks, FileRef
from loader.errors import ArtifactRefused, LoadFailed, StoreDenied, StoreUnreachable
from loader.shared import SharedMemory
from runtime.compose import composed
from runtime.config import Settings
from runtime.engine import Request
from runtime.observer import NullObserver
from runtime.porter import messages, porter, process
from runtime.porter.messages import error_of, failed, file_of, fill_of, fits
from runtime.porter.work import Model
from tests import fault_server as faults
from tests import tiny_models
from tests.test_faults import (
    CHUNK,
    HEALS,
    ask,
    engine_over,
    outcome,
    server,  # noqa: F401
    shelf,  # noqa: F401
    struck,
    until_carried,
    verified_by,
)


@contextlib.asynccontextmanager
async def served(folder: Path, **values):
    settings = Settings(store=str(folder), device="cpu", budget="4MiB", **values)
    async with composed(settings, NullObserver()) as engine:
        yield engine
        assert len(os.listdir("/proc/self/fd")) < 500
    assert (await engine.snapshot()).held == 0


async def porter_of(engine) -> int:
    return (await engine.snapshot()).tiers.porter


async def loads_of(engine) -> dict[str, int]:
    return (await engine.snapshot()).tiers.loads


def fleet(folder: Path, count: int, extra: int = 0) -> list[str]:
    names = [f"m{index}" for index in range(count)]
    for index, name in enumerate(names):
        tiny_models.linear(folder, name, index, extra=extra)
    return names


# -- what it brings -------------------------------------------------------------------


async def test_it_brings_what_threads_would(tmp_path: Path) -> None:
    names = fleet(tmp_path, 12, extra=700_000)
    async with served(tmp_path, loader="process") as engine:
        await until_carried(engine)
        for _ in range(2):
            for index, name in enumerate(names):
                assert await ask(engine, name) == [float(index)] * 4
        assert await loads_of(engine) == {"store": 24}, "4 MiB hold five of them"
        held = (await engine.snapshot()).residents
        assert len({r.nbytes for r in held}) == 1, "a stride that is constant"


async def test_it_needs_no_torch(tmp_path: Path) -> None:
    fleet(tmp_path, 1)
    async with served(tmp_path, loader="process") as engine:
        await until_carried(engine)
        await ask(engine, "m0")
        pid = await porter_of(engine)
        maps = await asyncio.to_thread(Path(f"/proc/{pid}/maps").read_text)
        assert "libtorch" not in maps
        assert "hotset-arena" in maps


async def test_what_it_wrote_to_disk_is_known(tmp_path: Path) -> None:
    names = fleet(tmp_path / "store", 3, extra=1_500_000)
    disk = {"disk_cache": str(tmp_path / "disk"), "disk_cache_size": "64MiB"}
    async with served(tmp_path / "store", loader="process", **disk) as engine:
        await until_carried(engine)
        for name in (*names, *names):
            await ask(engine, name)
            await on_disk(engine, names.index(name) + 1)
        assert (await loads_of(engine))["disk"] >= 2
        (tier,) = (await engine.snapshot()).tiers.below
        assert tier.hits >= 2
        assert tier.held >= 3 * 1_500_000


async def on_disk(engine, entries: int) -> None:
    """Until so many files are known; the graph they share is one of them."""
    while (await engine.snapshot()).tiers.below[0].entries < entries:  # noqa: ASYNC110
        await asyncio.sleep(0.01)


async def test_a_header_too_long_to_be_told_is_read_here(tmp_path: Path) -> None:
    made = tiny_models.files(3)
    tensors = {"w": torch.eye(4) * 3, "b": torch.zeros(4)}
    for index in range(1000):
        tensors[f"__pad{index}{'x' * 200}"] = torch.zeros(16, dtype=torch.uint8)
    data = save(tensors)
    assert int.from_bytes(data[:8], "little") > messages.MOST_HEADER
    manifest = json.loads(made["model.json"])
    manifest["weights"] = tiny_models.ref("model.safetensors", data)
    made["model.safetensors"] = data
    made["model.json"] = json.dumps(manifest).encode()
    (tmp_path / "m" / "1").mkdir(parents=True)
    for name, content in made.items():
        (tmp_path / "m" / "1" / name).write_bytes(content)
    async with served(tmp_path, loader="process") as engine:
        await until_carried(engine)
        assert await ask(engine, "m") == [3.0] * 4
        await engine.unload("m")
        assert await ask(engine, "m") == [3.0] * 4, "known by now"
        assert await porter_of(engine)


@pytest.mark.parametrize("loader", ["threads", "process"])
async def test_a_damaged_file_is_refused_alike(tmp_path: Path, loader: str) -> None:
    tiny_models.linear(tmp_path, "m", 1)
    path = tmp_path / "m" / "1" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    async with served(tmp_path, loader=loader) as engine:
        if loader == "process":
            await until_carried(engine)
        with pytest.raises(ArtifactRefused, match=r"SHA-256|BLAKE3"):
            await ask(engine, "m")
        path.unlink()
        assert (await engine.snapshot()).held == 0


# -- when there is one ----------------------------------------------------------------


async def test_it_comes_when_there_are_enough_loads(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    names = fleet(tmp_path, porter.AFTER + 1)
    async with served(tmp_path) as engine:
        begun = asyncio.Event()
        monkeypatch.setattr(porter.Porter, "start", lambda self: begun.set())
        for name in names[: porter.AFTER]:
            await ask(engine, name)
        assert not begun.is_set()
        await ask(engine, names[-1])
        assert begun.is_set()


async def test_there_is_none_for_a_core_alone(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    monkeypatch.setattr(porter, "AFTER", 0)
    fleet(tmp_path, 1)
    async with served(tmp_path) as engine:
        await ask(engine, "m0")
        monkeypatch.setattr(process, "Process", None)
        await ask(engine, "m0")
        assert not await porter_of(engine)


async def test_a_store_that_is_nowhere_else_has_none() -> None:
    settings = Settings(store="memory://", device="cpu", loader="process")
    async with composed(settings, NullObserver()) as engine:
        assert not await porter_of(engine)


# -- its death ------------------------------------------------------------------------


async def test_its_death_costs_a_load_time_only(server) -> None:  # noqa: F811
    verified_by(server, "chunks")
    async with engine_over(server, loader="process") as engine:
        first = await porter_of(engine)
        server.breaks(faults.hang, "ill/1/model.safetensors", CHUNK, 1)
        asking = asyncio.create_task(outcome(engine, server))
        await struck(server, asking)
        os.kill(first, signal.SIGKILL)
        assert await asking is HEALS
        await until_carried(engine)
        assert await porter_of(engine) != first


async def test_one_that_hangs_is_replaced(server, monkeypatch) -> None:  # noqa: F811
    verified_by(server, "chunks")
    monkeypatch.setattr(process, "TICK_S", 0.01)
    monkeypatch.setattr(process, "HUNG_S", 1.5)
    async with engine_over(server, loader="process") as engine:
        first = await porter_of(engine)
        os.kill(first, signal.SIGSTOP)
        assert await outcome(engine, server) is HEALS
        await until_carried(engine)
        assert await porter_of(engine) != first


async def test_who_leaves_its_load_leaves_nothing(server) -> None:  # noqa: F811
    verified_by(server, "chunks")
    async with engine_over(server, loader="process") as engine:
        before = await engine.snapshot()
        server.breaks(faults.hang, "ill/1/model.safetensors", CHUNK, 1)
        asking = asyncio.create_task(outcome(engine, server))
        await struck(server, asking)
        asking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asking
        while (await engine.snapshot()).held > before.held:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert await outcome(engine, server) is HEALS
        assert await porter_of(engine) == before.tiers.porter


async def test_one_that_does_not_call_off_is_ended(server, monkeypatch) -> None:  # noqa: F811
    verified_by(server, "chunks")
    monkeypatch.setattr(porter, "SLOW_S", 0.01)
    async with engine_over(server, loader="process") as engine:
        first, held = await porter_of(engine), (await engine.snapshot()).held
        os.kill(first, signal.SIGSTOP)
        asking = asyncio.create_task(ask(engine, "ill"))
        while (await engine.snapshot()).held == held:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        asking.cancel()
        while (await engine.snapshot()).held > held:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await until_carried(engine)
        assert await porter_of(engine) != first


async def test_kills_one_after_the_other_lose_nothing(tmp_path: Path) -> None:
    names = fleet(tmp_path, 12, extra=700_000)
    async with served(tmp_path, loader="process") as engine:
        for _ in range(3):
            await until_carried(engine)
            asking = [
                asyncio.create_task(engine.predict(Request(n, {"x": torch.ones(1, 4)})))
                for n in names
            ]
            await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
            os.kill(await porter_of(engine), signal.SIGKILL)
            for index, task in enumerate(asking):
                answer = (await task).outputs[0][1][0].tolist()
                assert answer == [float(index)] * 4


# -- what they say --------------------------------------------------------------------

CHUNKED = FileRef("w", 3 << 20, "00" * 32, Chunks(1 << 20, ("ab" * 32,) * 3))


@pytest.mark.parametrize("file", [CHUNKED, FileRef("w", 7, "cd" * 32)])
def test_a_file_is_told_and_understood(file: FileRef) -> None:
    told = fill_of(7, Model("m", "m/1", file), (1, 4096, 100), True, False)
    again = messages.ORDERS.decode(messages.msgspec.msgpack.encode(told))
    assert again == told
    assert file_of(again) == file
    assert file_of(again).identity == file.identity


def test_a_file_of_very_many_chunks_is_not_told() -> None:
    many = Chunks(1 << 20, ("ab" * 32,) * (messages.MOST_CHUNKS + 1))
    assert fits(CHUNKED)
    assert not fits(FileRef("w", 1 << 40, "00" * 32, many))


@pytest.mark.parametrize(
    "error",
    [
        ArtifactRefused("model.safetensors", "is empty"),
        StoreUnreachable("the model store could not be read"),
        StoreDenied("the model store refused the server's credentials"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_is_told_and_understood(error: LoadFailed) -> None:
    error.__cause__ = OSError("a path of the host")
    again = error_of(failed(1, error))
    assert type(again) is type(error)
    assert again.message == error.message
    assert "a path of the host" in str(again.__cause__), "for the log"


def test_a_bug_there_is_a_fault_of_the_server_here() -> None:
    again = error_of(failed(1, ZeroDivisionError("secret")))
    assert isinstance(again, StoreUnreachable)
    assert "secret" not in again.message


# -- the memory they share ------------------------------------------------------------


def test_a_slab_is_there_until_nobody_looks_at_it() -> None:
    memory, seen = SharedMemory(), []
    memory.came = lambda ground: seen.append(("came", ground.number))
    memory.went = lambda number: seen.append(("went", number))
    slab = memory.slab(1 << 20)
    (ground,) = memory.grounds.values()
    assert memory.where(slab.numpy()[4096:]) == (ground.number, 4096)
    part = slab[:10]
    del slab
    memory.gave_back()
    assert seen == [("came", 1)]
    os.fstat(ground.fd)
    del part
    memory.gave_back()
    assert seen == [("came", 1), ("went", 1)]
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(ground.fd)
    with pytest.raises(KeyError):
        memory.where(torch.zeros(8).numpy())
