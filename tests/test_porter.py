"""The process that brings weights in: what it brings, and what its death costs."""

import asyncio
import contextlib
import dataclasses
import json
import os
import random
import signal
import socket
import tempfile
import threading
from pathlib import Path

import psutil
import pytest
import structlog
import torch
from safetensors.torch import save

from eviction.costs import Costs
from eviction.ledger import Ledger
from loader.digest import Chunks, FileRef
from loader.errors import ArtifactRefused, LoadFailed, StoreDenied, StoreUnreachable
from loader.manifest import read_manifest
from loader.shared import SharedMemory
from loader.store import Store
from loader.trades import tile_of
from loader.turns import Errand, Turns
from runtime.compose import composed
from runtime.config import Settings
from runtime.engine import Request
from runtime.link.packets import Packets
from runtime.loading import loading
from runtime.observer import NullObserver
from runtime.porter import messages, orders, porter, process
from runtime.porter.fit import begin, unfit
from runtime.porter.given import Model
from runtime.porter.messages import error_of, failed, file_of, fill_of, fits
from runtime.porter.work import Work
from tests import fault_server as faults
from tests import tiny_models
from tests.server_process import serving
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


@pytest.fixture(autouse=True)
def small(monkeypatch) -> None:
    """Models of these tests are small; most of them are for the porter all the same."""
    monkeypatch.setattr(porter, "SMALLEST", 0)


@contextlib.asynccontextmanager
async def served(folder: Path, **values):
    settings = Settings(store=str(folder), device="cpu", budget="4MiB", **values)
    before = children()
    async with composed(settings, NullObserver()) as engine:
        yield engine
    assert (await engine.snapshot()).held == 0
    assert children() == before


def children() -> set[int]:
    """Processes of ours: other tests' servers among them."""
    return {child.pid for child in psutil.Process().children()}


def descriptors() -> set[str]:
    """What is open, but for what reading the list opens."""
    return {
        fd
        for fd in os.listdir("/proc/self/fd")
        if os.path.exists(f"/proc/self/fd/{fd}")
    }


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


async def test_what_is_small_is_not_worth_asking_for(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(porter, "SMALLEST", 1 << 20)
    tiny_models.linear(tmp_path, "small", 1)
    tiny_models.linear(tmp_path, "large", 2, extra=1 << 20)
    asked, said = [], process.Process.say

    def say(self, order, fds=()) -> bool:
        if isinstance(order, messages.Fill):
            asked.append(order.name)
        return said(self, order, fds)

    monkeypatch.setattr(process.Process, "say", say)
    async with served(tmp_path, loader="process") as engine:
        await until_carried(engine)
        assert await ask(engine, "small") == [1.0] * 4
        assert await ask(engine, "large") == [2.0] * 4
    assert asked == ["large"]


async def test_it_needs_no_torch(tmp_path: Path) -> None:
    fleet(tmp_path, 1)
    async with served(tmp_path, loader="process") as engine:
        await until_carried(engine)
        await ask(engine, "m0")
        pid = await porter_of(engine)
        maps = await asyncio.to_thread(Path(f"/proc/{pid}/maps").read_text)
        assert "libtorch" not in maps
        assert "hotset-arena" in maps


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="there is one core")
async def test_it_leaves_one_core(tmp_path: Path) -> None:
    fleet(tmp_path, 1)
    async with served(tmp_path, loader="process") as engine:
        await until_carried(engine)
        pid = await porter_of(engine)
        ours = os.sched_getaffinity(0)
        assert ours - os.sched_getaffinity(pid) == {min(ours)}


async def test_what_it_wrote_to_disk_is_known(tmp_path: Path) -> None:
    names = fleet(tmp_path / "store", 3, extra=1_500_000)
    disk = {"disk_cache": str(tmp_path / "disk"), "disk_cache_size": "64MiB"}
    async with served(tmp_path / "store", loader="process", **disk) as engine:
        await until_carried(engine)
        for name in (*names, *names):
            await ask(engine, name)
            await on_disk(engine, names.index(name) + 2)
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


def why_none(monkeypatch, cores: int = 2, store: str = "/", **values) -> str:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))
    settings = Settings(store=store, **values)
    return unfit(settings, Store.open(store), torch.device("cpu"))


def test_when_there_may_be_one(monkeypatch) -> None:
    assert why_none(monkeypatch) == ""
    assert why_none(monkeypatch, cores=1) == "there is one core"
    assert why_none(monkeypatch, cores=1, loader="process") == ""
    assert why_none(monkeypatch, loader="threads") == "as asked"
    nowhere = "no other process can open this store"
    assert why_none(monkeypatch, store="memory://", loader="process") == nowhere
    settings = Settings(store="/", loader="process")
    assert "GPU" in unfit(settings, Store.open("/"), torch.device("cuda:0"))


async def test_one_that_cannot_begin_is_not_tried_for_ever(tmp_path: Path) -> None:
    """A store of a class that the other process cannot import."""

    class Unknown(Store):
        """Nowhere to be found by its name."""

    fleet(tmp_path, 2)
    settings = Settings(store=str(tmp_path), device="cpu", loader="process")
    before = children()
    with structlog.testing.capture_logs() as said:
        async with composed(
            settings, NullObserver(), store=Unknown.open(str(tmp_path))
        ) as engine:
            while not said_of(said, "there is no porter, loads stay in threads"):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            assert await ask(engine, "m1") == [1.0] * 4
            assert children() == before
    assert len(said_of(said, "the porter is replaced")) == porter.TRIES - 1


def said_of(said: list, event: str) -> list:
    return [record for record in said if record["event"] == event]


async def test_one_that_cannot_be_started_is_done_without(
    tmp_path, monkeypatch
) -> None:
    fleet(tmp_path, 1)

    def refused(*args, **kwargs) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(process, "_started", refused)
    before = descriptors()
    async with served(tmp_path, loader="process") as engine:
        assert await ask(engine, "m0") == [0.0] * 4
        assert not await porter_of(engine)
    assert descriptors() <= before


async def test_it_prefetches(tmp_path: Path) -> None:
    fleet(tmp_path, 2, extra=100_000)
    settings = Settings(
        store=str(tmp_path), device="cpu", loader="process", prefetch="4MiB"
    )
    store, device, turns = Store.open(str(tmp_path)), torch.device("cpu"), Turns()
    async with loading(settings, store, device, Ledger(4 << 20), Costs()) as bringing:
        while not bringing.loader.tiers().porter:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        spec, errand = spec_of(tmp_path, "m1"), Errand(urgent=False)
        turns.begin(errand)
        await asyncio.create_task(bringing.ahead.bring(spec, errand, 1e9))
        assert bringing.ahead.holds(spec.weights.identity)
        assert (await bringing.loader.load(spec)).tier == "host"
        assert bringing.ahead.tier().failures == 0


def spec_of(folder: Path, name: str):
    data = (folder / name / "1" / "model.json").read_bytes()
    return dataclasses.replace(read_manifest(data, name, "1"), directory=f"{name}/1")


# -- the porter's own side ------------------------------------------------------------


class Working:
    """A porter in this process, and the engine's end of its socket."""

    def __init__(
        self, folder: Path, nbytes: int = 1 << 20, disk: str = "", spare=()
    ) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.heard: asyncio.Queue = asyncio.Queue()
        self.folder = folder
        self.work = Work(theirs, spare)
        self.memory = SharedMemory()
        self.slab = self.memory.slab(nbytes)
        self.packets = Packets(
            ours,
            messages.REPORTS,
            lambda report, fds: self.heard.put_nowait(report),
            lambda: None,
        )
        settings = Settings(store=str(folder), disk_cache=disk)
        self.packets.say(begin(settings, Store.open(str(folder))))
        (ground,) = self.memory.grounds.values()
        self.packets.say(
            messages.Came(1, ground.nbytes, ground.region.runs), [ground.fd]
        )

    def fill(self, call: int, name: str, urgent: bool = True) -> None:
        spec = spec_of(self.folder, name)
        place = 1, 0, len(self.slab)
        self.packets.say(fill_of(call, spec, place, urgent, False))

    async def next(self):
        while True:
            report = await self.heard.get()
            if not isinstance(report, messages.Up | messages.Beat):
                return report

    async def close(self) -> None:
        self.packets.close()
        await self.work.over
        await self.work.close()


@pytest.fixture
async def working(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("runtime.porter.work.logs.configure", lambda *args: None)
    fleet(tmp_path, 3)
    found = Working(tmp_path)
    yield found
    await found.close()


async def test_what_is_called_off_at_once_is_answered(working: Working) -> None:
    """Both orders arrive together: its task never runs a line."""
    working.fill(1, "m1")
    working.packets.say(messages.CallOff(1))
    assert await working.next() == messages.Failed(1, messages.CALLED_OFF, (), "")
    working.fill(2, "m2")
    done = await working.next()
    assert (done.call, done.tier) == (2, "store")


async def test_what_is_not_urgent_waits_until_it_is(working: Working) -> None:
    urgent = Errand()
    working.work._turns.begin(urgent)
    working.fill(1, "m1", urgent=False)
    working.fill(2, "m2")
    assert (await working.next()).call == 2
    working.packets.say(messages.Hurry(1))
    assert (await working.next()).call == 1
    working.work._turns.end(urgent)


async def test_it_writes_to_disk_in_small_steps(tmp_path: Path, monkeypatch) -> None:
    """In large ones the kernel would have to find large pages for them."""
    asked: list[int] = []
    write = os.write

    def noted(fd: int, data: memoryview) -> int:
        asked.append(len(data))
        return write(fd, data)

    monkeypatch.setattr("runtime.porter.work.logs.configure", lambda *args: None)
    monkeypatch.setattr("runtime.porter.work.WRITE", 100)
    monkeypatch.setattr("loader.spool_files.os.write", noted)
    (tmp_path / "disk").mkdir()
    fleet(tmp_path / "store", 1)
    working = Working(tmp_path / "store", disk=str(tmp_path / "disk"))
    working.fill(1, "m0")
    file = spec_of(tmp_path / "store", "m0").weights
    kept = (file.identity, file.size)
    while kept not in getattr(await working.next(), "files", ()):
        pass
    await working.close()
    assert sum(asked) == file.size
    assert max(asked) == 100


async def test_a_bug_there_is_told_as_one(working: Working, monkeypatch) -> None:
    monkeypatch.setattr("runtime.porter.work.file_of", None)
    working.fill(1, "m1")
    assert (await working.next()).kind == messages.BUG


async def test_an_end_that_is_not_read_loses_nothing() -> None:
    """A socket takes two large messages; the others wait, descriptors and all."""
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    heard: asyncio.Queue = asyncio.Queue()
    ours = Packets(one, messages.REPORTS, lambda m, fds: None, lambda: None)
    header = b"h" * messages.MOST_HEADER
    before = descriptors()
    with tempfile.TemporaryFile() as file:
        for call in range(12):
            done = messages.Done(call, "store", {}, header)
            assert ours.say(done, [file.fileno()] if call == 11 else [])
    theirs = Packets(
        other,
        messages.REPORTS,
        lambda m, fds: heard.put_nowait((m, fds)),
        lambda: None,
    )
    got = [await heard.get() for _ in range(12)]
    assert [message.call for message, _ in got] == list(range(12))
    (fd,) = got[-1][1]
    os.close(fd)
    assert ours.say(messages.Beat())
    assert await heard.get() == (messages.Beat(), [])
    ours.close()
    theirs.close()
    assert descriptors() <= before


async def test_an_end_that_is_closed_keeps_no_descriptor() -> None:
    before = descriptors()
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours = Packets(one, messages.REPORTS, lambda m, fds: None, lambda: None)
    with tempfile.TemporaryFile() as file:
        while ours.say(messages.Done(1, "", {}, b"h" * 100_000), [file.fileno()]):
            if len(ours._waiting) > 3:
                break
    ours.close()
    other.close()
    assert descriptors() == before


async def test_a_large_file_is_read_on_the_core_it_leaves_as_well(
    tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr("runtime.porter.work.logs.configure", lambda *args: None)
    monkeypatch.setattr("loader.fill.LARGE", 40 << 20)
    core = min(os.sched_getaffinity(0))
    tiny_models.linear(tmp_path, "m0", 1, extra=41 << 20, chunks=True)
    tiny_models.linear(tmp_path, "m1", 1, extra=39 << 20, chunks=True)
    working = Working(tmp_path, 42 << 20, spare=(core,))

    def there() -> list[set[int]]:
        threads = [t for t in threading.enumerate() if t.name.startswith("large")]
        return [os.sched_getaffinity(thread.native_id) for thread in threads]

    before = there()
    for call, name, more in ((1, "m1", []), (2, "m0", [{core}])):
        working.fill(call, name)
        assert (await working.next()).call == call
        assert there() == before + more
    await working.close()


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


@pytest.mark.process
async def test_it_does_not_outlive_its_engine(tmp_path: Path) -> None:
    fleet(tmp_path / "store", 1)
    log, store = tmp_path / "log", str(tmp_path / "store")
    async with serving(store, log, "--loader", "process") as hotset:
        engine = psutil.Process(hotset.process.pid)
        while not (begun := engine.children()):  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)
        hotset.process.kill()
        gone, alive = await asyncio.to_thread(psutil.wait_procs, begun, 10)
    assert (len(gone), alive) == (1, [])


async def test_one_that_hangs_is_replaced(server, monkeypatch) -> None:  # noqa: F811
    verified_by(server, "chunks")
    monkeypatch.setattr(process, "TICK_S", 0.01)
    monkeypatch.setattr(process, "HUNG_S", 4.0)
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
    monkeypatch.setattr(orders, "SLOW_S", 0.01)
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


async def test_it_copies_to_the_host_tier_and_back(tmp_path, monkeypatch) -> None:
    names, asked = fleet(tmp_path, 12, extra=700_000), []
    said = process.Process.say

    def say(self, order, fds=()) -> bool:
        asked.append(type(order).__name__)
        return said(self, order, fds)

    monkeypatch.setattr(process.Process, "say", say)
    async with served(tmp_path, loader="process", host_cache="64MiB") as engine:
        await until_carried(engine)
        for _ in range(3):
            for index, name in enumerate(names):
                assert await ask(engine, name) == [float(index)] * 4
        loads = await loads_of(engine)
        assert loads["host"] >= 20
        assert asked.count("Fill") == loads["store"] == 12
        assert asked.count("Copy") >= loads["host"]


async def test_its_death_costs_a_copy_time_only(tmp_path, monkeypatch) -> None:
    names, stopped = fleet(tmp_path, 12, extra=700_000), asyncio.Event()
    said = process.Process.say

    def say(self, order, fds=()) -> bool:
        if isinstance(order, messages.Copy) and stopped.is_set() is False:
            os.kill(self.pid, signal.SIGSTOP)
            stopped.set()
        return said(self, order, fds)

    async with served(tmp_path, loader="process", host_cache="64MiB") as engine:
        await until_carried(engine)
        for name in names:
            await ask(engine, name)
        first = await porter_of(engine)
        monkeypatch.setattr(process.Process, "say", say)
        asking = asyncio.create_task(ask(engine, names[0]))
        await stopped.wait()
        os.kill(first, signal.SIGKILL)
        assert await asking == [0.0] * 4
        await until_carried(engine)
        for index, name in enumerate(names):
            assert await ask(engine, name) == [float(index)] * 4


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


# -- where things are -----------------------------------------------------------------


async def test_a_link_that_leads_elsewhere_later(tmp_path: Path) -> None:
    """Both processes read the folder that it led to when the server began."""
    tiny_models.linear(tmp_path / "one", "m", 1)
    tiny_models.linear(tmp_path / "two", "m", 2)
    link = tmp_path / "current"
    link.symlink_to("one")
    store = Store.open(str(link))
    link.unlink()
    link.symlink_to("two")
    settings = Settings(store=str(link), device="cpu", loader="process")
    async with composed(settings, NullObserver(), store=store) as engine:
        await until_carried(engine)
        assert await ask(engine, "m") == [1.0] * 4


async def test_a_folder_whose_name_is_no_text(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    fleet(folder, 1)
    disk = {
        "disk_cache": str(tmp_path / os.fsdecode(b"d\xe9")),
        "disk_cache_size": "1MiB",
    }
    async with served(folder, loader="process", **disk) as engine:
        await until_carried(engine)
        assert await ask(engine, "m0") == [0.0] * 4


async def test_without_files_in_memory_loads_stay_in_threads(
    tmp_path, monkeypatch
) -> None:
    def refused(*args) -> int:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(os, "memfd_create", refused)
    fleet(tmp_path, 1)
    async with served(tmp_path, loader="process") as engine:
        assert await ask(engine, "m0") == [0.0] * 4
        assert not await porter_of(engine)


# -- the memory they share ------------------------------------------------------------


async def test_pages_that_changed_places_are_filled_where_they_are_seen(
    tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr("runtime.porter.work.logs.configure", lambda *args: None)
    fleet(tmp_path, 2, extra=700_000)
    working = Working(tmp_path)
    working.memory.swapped = lambda number, trades: working.packets.say(
        messages.Swapped(number, trades)
    )
    tile = tile_of(len(working.slab))
    for call, (there, behind) in enumerate([(1, 14), (3, 13), (14, 1)]):
        working.slab.fill_(9)
        working.memory.swap(working.slab, [(there * tile, behind * tile, tile)])
        working.fill(call, f"m{call % 2}")
        assert (await working.next()).call == call
        seen = bytes(working.slab.numpy())
        assert bytes(700_000) in seen, "what fills the file up, in one piece"
    await working.close()


async def test_models_of_all_sizes_are_what_they_were(
    tmp_path: Path, monkeypatch
) -> None:
    """Their pages change places as they come and go; the next porter is told how."""
    names = [f"m{index}" for index in range(12)]
    for index, name in enumerate(names):
        tiny_models.linear(tmp_path, name, index, extra=270_000 + index * 110_000)
    traded, swap = [], SharedMemory.swap

    def swapped(self, slab, trades) -> int:
        traded.extend(trades)
        return swap(self, slab, trades)

    monkeypatch.setattr(SharedMemory, "swap", swapped)
    chance = random.Random(0)
    async with served(tmp_path, loader="process", host_cache="3MiB") as engine:
        for life in range(3):
            await until_carried(engine)
            seen = len(traded)
            for _ in range(60):
                index = chance.randrange(len(names))
                assert await ask(engine, names[index]) == [float(index)] * 4
            assert len(traded) > seen, "nothing was traded in this life"
            tiers = (await engine.snapshot()).tiers
            assert tiers.space.reserved <= 4 << 20
            if life < 2:
                os.kill(tiers.porter, signal.SIGKILL)
                await until_other(engine, tiers.porter)
        assert (await loads_of(engine)).keys() == {"store", "host"}


async def until_other(engine, porter: int) -> None:
    while await porter_of(engine) == porter:  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(0.01)


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
    assert memory.where(torch.zeros(8).numpy()) is None
