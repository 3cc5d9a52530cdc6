"""A file by several threads, inline where it is cached, and how that ends early."""

import asyncio
import hashlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save
from torch import arange, uint8

from loader.chunks import RUN, FileChunks
from loader.digest import FileRef, chunked
from loader.fill import Filler
from loader.placing import Placings, place
from loader.pool import host_pool
from loader.ranges import CHUNK
from loader.store import Store
from loader.turns import ERRAND, Errand
from runtime.porter.given import Given, Model

NBYTES = 3 << 20
DATA = save({"w": arange(NBYTES).to(uint8)})


class Steps:
    """Stands for what pours: each chunk waits for its leave, and is written down."""

    ordered = False

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.leave = threading.Semaphore(0)
        self.told = asyncio.Event()
        self.loop = asyncio.get_running_loop()

    def file(self, fd: int, start: int, end: int) -> None:
        self.begun.append(start // CHUNK)
        self.loop.call_soon_threadsafe(self.told.set)
        self.leave.acquire()
        if start // CHUNK == 5:
            raise OSError("the disk fails")


async def test_a_run_ends_between_two_chunks_when_it_is_called_off() -> None:
    steps = Steps()
    with ThreadPoolExecutor(1) as threads:
        chunks = FileChunks(steps, -1, 100 * CHUNK)
        task = asyncio.create_task(chunks.pour([threads]))
        await steps.told.wait()
        task.cancel()
        await asyncio.sleep(0)
        assert not task.done(), "the thread is waited for"
        steps.leave.release(100)
        with pytest.raises(asyncio.CancelledError):
            await task
    assert steps.begun == [0]


async def test_the_first_failure_stops_the_others() -> None:
    steps = Steps()
    steps.leave.release(1000)
    with ThreadPoolExecutor(2) as threads, pytest.raises(OSError, match="disk fails"):
        await FileChunks(steps, -1, 1000 * CHUNK).pour([threads, threads])
    assert len(steps.begun) < 1000


@pytest.mark.parametrize(("urgent", "hops"), [(True, 2), (False, RUN + 2)])
async def test_what_is_not_urgent_comes_back_after_each(urgent, hops) -> None:
    steps = Steps()
    steps.leave.release(100)
    ERRAND.set(Errand(urgent))
    with ThreadPoolExecutor(1) as threads:
        submit, counted = threads.submit, []
        threads.submit = lambda *args: (counted.append(1), submit(*args))[1]
        await FileChunks(steps, -1, (RUN + 1) * CHUNK).pour([threads])
    assert steps.begun == list(range(RUN + 1))
    assert len(counted) == hops


class AtOnce:
    """Nobody goes on before two threads are here."""

    ordered = False

    def __init__(self) -> None:
        self.both, self.names = threading.Barrier(2, timeout=10), set()

    def file(self, fd: int, start: int, end: int) -> None:
        self.names.add(threading.current_thread().name[:1])
        self.both.wait()


async def test_each_hand_takes_chunks() -> None:
    steps = AtOnce()
    with ThreadPoolExecutor(1, "a") as a, ThreadPoolExecutor(1, "b") as b:
        await FileChunks(steps, -1, 2 * CHUNK).pour([a, b])
    assert steps.names == {"a", "b"}


# -- inline ---------------------------------------------------------------------------


def wanted(folder: Path, chunks: bool) -> Model:
    (folder / "m" / "1").mkdir(parents=True)
    (folder / "m" / "1" / "w").write_bytes(DATA)
    sha256 = hashlib.sha256(DATA).hexdigest()
    listed = chunked(DATA, 1 << 20) if chunks else None
    return Model("m", "m/1", FileRef("w", len(DATA), sha256, listed))


@pytest.mark.parametrize("chunks", [True, False])
@pytest.mark.parametrize("cached", ["all", "some", "none", "nobody can say"])
async def test_what_is_not_cached_is_read_in_a_thread(
    tmp_path, monkeypatch, chunks, cached
) -> None:
    read, here = os.preadv, []

    def preadv(fd, buffers, at, flags=0):
        if flags:
            here.append(at)
            if cached == "nobody can say":
                raise OSError(95, "Operation not supported")
            if cached == "none" or (cached == "some" and at > 2 << 20):
                raise BlockingIOError
        return read(fd, buffers, at)

    monkeypatch.setattr(os, "preadv", preadv)
    model, memory = wanted(tmp_path, chunks), np.zeros(len(DATA), dtype=np.uint8)
    with ThreadPoolExecutor(1) as threads:
        filler = Filler(
            Store.open(str(tmp_path)), Placings(), threads, host_pool(1), None,
            step=1 << 20, inline=True,
        )  # fmt: skip
        for known in (False, True):
            memory[:] = 0
            filled = await filler.fill(model, Given(memory, False))
            start = filled.placed.layout.data_start
            assert memory[:NBYTES].tobytes() == DATA[start:]
            assert bool(here) is known, "inline is for what was here before"


# -- room -----------------------------------------------------------------------------


async def test_more_than_was_given_is_not_written(tmp_path: Path) -> None:
    given = Given(np.zeros(100, dtype=np.uint8), False)
    with pytest.raises(AssertionError):
        await given.find(101)
    block = await given.find(60)
    assert (block.slab, block.start, block.nbytes) == (None, 0, 60)
    assert len(given.landing(block)) == 60
    given.placed(block, place(DATA, len(DATA)))
