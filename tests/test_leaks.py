"""10,000 loads and evictions: nothing grows. And the same test catches what does.

Memory is counted where a leak would show: the process' resident set, its descriptors,
its threads and the loop's tasks, after each thousand cycles.
"""

import asyncio
import ctypes
import gc
import mmap
import os
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import psutil
import pytest

from loader.graphs import GraphShelf
from loader.host import HostTier
from loader.load import Loader
from loader.manifest import ModelSpec
from loader.memory import HostMemory
from loader.store import Store
from tests import tiny_models
from tests.test_load import CPU, _with_directory, read_manifest

MODELS = 20
CYCLES = 10_000
LOOKS = 10
MEMORY_SLACK = 1 << 20
"""Allocators keep a page here and there; what leaks in each cycle is far above it."""


@dataclass(frozen=True)
class Look:
    rss: int
    descriptors: int
    threads: int
    tasks: int


def look() -> Look:
    gc.collect()
    # What earlier tests have freed would hide a leak until it is used up.
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
    return Look(
        psutil.Process().memory_info().rss,
        len(os.listdir("/proc/self/fd")),
        threading.active_count(),
        len(asyncio.all_tasks()),
    )


def growth(looks: list[Look]) -> list[str]:
    """What grew, in words. The first third is warming up."""
    first, last = looks[len(looks) // 3], looks[-1]
    found = [
        f"{name}: {getattr(first, name)} to {getattr(last, name)}"
        for name in ("descriptors", "threads", "tasks")
        if getattr(last, name) > getattr(first, name)
    ]
    rss = [one.rss for one in looks[len(looks) // 3 :]]
    steps = [after - before for before, after in pairwise(rss)]
    # One step is an arena that an allocator took; a leak is in every one of them.
    grown = rss[-1] - rss[0] - max(steps)
    if grown > MEMORY_SLACK:
        found.append(f"memory grew by {grown} bytes")
    return found


async def cycles(
    loader: Loader, specs: list[ModelSpec], count: int, leak: Callable[[], None]
) -> list[Look]:
    looks = []
    for cycle in range(count):
        model = await loader.load(specs[cycle % len(specs)])
        await loader.unload(model)
        leak()
        if cycle % (count // LOOKS) == 0:
            looks.append(look())
    return [*looks, look()]


@pytest.fixture
def specs(tmp_path: Path) -> list[ModelSpec]:
    found = []
    for index in range(MODELS):
        tiny_models.linear(tmp_path, f"m{index}", index, extra=16_384)
        data = (tmp_path / f"m{index}" / "1" / "model.json").read_bytes()
        spec = read_manifest(data, f"m{index}", "1")
        found.append(_with_directory(spec, f"m{index}/1"))
    return found


def full(workers: int) -> ThreadPoolExecutor:
    """A pool that has all its threads: it starts one whenever none is idle at that very
    moment, which may be in cycle 3 or in cycle 4,000, and is no leak."""
    pool, met = ThreadPoolExecutor(workers), threading.Barrier(workers)
    for meeting in [pool.submit(met.wait, 10) for _ in range(workers)]:
        meeting.result()
    return pool


@pytest.fixture
def loading(tmp_path: Path, specs) -> Callable[[bool], Awaitable[Loader]]:
    threads = full(2)

    async def made(tiered: bool) -> Loader:
        asyncio.get_running_loop().set_default_executor(full(2))
        store = Store.open(str(tmp_path))
        host = HostTier(MODELS // 2 * 20_000, CPU, threads) if tiered else None
        shelf = GraphShelf(store, CPU, threads)
        return Loader(store, shelf, HostMemory(), threads, host=host)

    yield made
    threads.shutdown()


@pytest.mark.stress
@pytest.mark.timeout(120)
async def test_ten_thousand_cycles_leave_nothing(loading, specs) -> None:
    """From a folder, and past a host tier that is too small for all."""
    for tiered in (False, True):
        loader = await loading(tiered)
        looks = await cycles(loader, specs, CYCLES // 2, lambda: None)
        assert growth(looks) == []
        assert loader.slabs.arena.held == 0
        assert loader.slabs.arena.touched <= loader.slabs.arena.capacity()


def _task(kept: list) -> None:
    kept.append(asyncio.get_running_loop().create_future())
    kept.append(asyncio.ensure_future(asyncio.wait_for(kept[-1], None)))


def _pages(kept: list) -> None:
    """Fresh pages: the heap would first use up what earlier tests gave back to it."""
    kept.append(mmap.mmap(-1, 65_536))
    kept[-1].write(b"x" * 65_536)


def _thread(kept: list) -> None:
    """Each hundredth time: threads are not cheap."""
    kept.append(None)
    if len(kept) % 100 == 0:
        kept[-1] = threading.Event()
        threading.Thread(target=kept[-1].wait).start()


LEAKS = {
    "memory": _pages,
    "descriptors": lambda kept: kept.append(os.open("/dev/null", os.O_RDONLY)),
    "tasks": _task,
    "threads": _thread,
}


def test_a_step_is_no_leak_and_a_slope_is() -> None:
    def looks(*mib: float) -> list[Look]:
        return [Look(int(m * 2**20), 1, 1, 1) for m in mib]

    assert growth(looks(1, 9, 9, 9, 9, 11, 11, 11, 11)) == []
    assert growth(looks(1, 9, 9, 9, 9.5, 10, 10.5, 11, 11.5)) != []


@pytest.mark.timeout(60)
@pytest.mark.parametrize("what", LEAKS)
async def test_a_planted_leak_is_caught(loading, specs, what: str) -> None:
    """64 KiB a cycle, or a descriptor, a task, now and then a thread: the same look
    sees each."""
    loader, kept = await loading(False), []
    try:
        looks = await cycles(loader, specs, 600, lambda: LEAKS[what](kept))
        assert [text for text in growth(looks) if what in text]
    finally:
        for item in kept:
            if isinstance(item, int):
                os.close(item)
            elif isinstance(item, threading.Event):
                item.set()
            elif isinstance(item, asyncio.Future):
                item.cancel()
        await asyncio.gather(
            *(i for i in kept if isinstance(i, asyncio.Future)), return_exceptions=True
        )
