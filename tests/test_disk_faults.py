"""A disk tier that fails as disks do: the server goes on without it, and says so.

Real refusals of the kernel: a file system that is full, one that is mounted read-only,
and a descriptor that gives EIO.
"""

import asyncio
import os
import subprocess
from pathlib import Path

import pytest

from loader.spool import Spool
from runtime.counts import Counts
from runtime.metrics import Metrics
from tests import tiny_models
from tests.test_prewarm import ask, engine_over


@pytest.fixture
def store(tmp_path: Path) -> Path:
    folder = tmp_path / "store"
    for index in range(1, 5):
        tiny_models.linear(folder, f"m{index}", index, extra=48_000)
    return folder


@pytest.fixture
def disk(tmp_path: Path):
    """A file system of 128 KiB of its own; gives how to mount it anew."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(*options: str) -> bool:
        command = ["mount", *options, str(folder)]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    if os.geteuid() or not mount("-t", "tmpfs", "-o", "size=128k", "tmpfs"):
        pytest.skip("needs the right to mount a file system")
    try:
        yield folder, mount
    finally:
        subprocess.run(["umount", str(folder)], check=True)


async def disk_tier(engine):
    (tier,) = (await engine.snapshot()).tiers.below
    return tier


async def written(engine) -> None:
    """A model's weights and its graph."""
    while (await disk_tier(engine)).entries < 2:  # noqa: ASYNC110
        await asyncio.sleep(0.01)


async def fallen(engine):
    """The tier, once it has failed: it writes behind our back."""
    while (await disk_tier(engine)).up:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    return await disk_tier(engine)


async def test_a_full_disk_is_no_tier_and_no_failure(store, disk) -> None:
    folder, _ = disk
    async with engine_over(store, disk_cache=str(folder)) as engine:
        for index in range(1, 5):
            assert await ask(engine, f"m{index}") == index
        tier = await fallen(engine)
        assert tier.failures >= 1
        assert not list(folder.glob("*.part")), "what did not fit leaves nothing"
        await engine.unload("m4")
        assert await ask(engine, "m4") == 4
        page, _ = Metrics(Counts(), "1").page(await engine.snapshot())
        assert 'hotset_tier_up{tier="disk"} 0.0' in page.decode()
        failures = float((await disk_tier(engine)).failures)
        assert f'hotset_tier_failures_total{{tier="disk"}} {failures}' in page.decode()


async def test_a_disk_that_became_read_only_is_still_read(store, disk) -> None:
    folder, mount = disk
    async with engine_over(store, disk_cache=str(folder)) as engine:
        assert await ask(engine, "m1") == 1
        await written(engine)
    assert mount("-o", "remount,ro")
    try:
        async with engine_over(store, disk_cache=str(folder)) as engine:
            for index in range(1, 4):
                assert await ask(engine, f"m{index}") == index
            assert (await engine.snapshot()).tiers.loads == {"disk": 1, "store": 2}
            await fallen(engine)
    finally:
        assert mount("-o", "remount,rw")


async def test_a_disk_that_cannot_be_read_costs_a_fetch(
    store, tmp_path, monkeypatch
) -> None:
    """Reading /proc/self/mem at 0 is EIO, from the kernel itself."""
    whole = Spool.open

    def broken(self, digest: str, size: int) -> int:
        fd = whole(self, digest, size)
        if fd < 0:
            return fd
        os.close(fd)
        return os.open("/proc/self/mem", os.O_RDONLY)

    async with engine_over(store, disk_cache=str(tmp_path / "disk")) as engine:
        assert await ask(engine, "m1") == 1
        await written(engine)
        await engine.unload("m1")
        monkeypatch.setattr(Spool, "open", broken)
        assert await ask(engine, "m1") == 1
        assert (await engine.snapshot()).tiers.loads == {"store": 2}
        assert (await disk_tier(engine)).failures >= 1
