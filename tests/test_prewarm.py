"""Prewarm, and the tiers as an operator sees them: a whole engine over real files."""

import asyncio
import contextlib
import io
import os
import sys
import threading
from pathlib import Path

import pytest
import torch
from rich.console import Console

from loader.slab import rounded
from loader.threads import NICE
from runtime.commands.picture import Sort, frame
from runtime.compose import composed
from runtime.config import Settings
from runtime.counts import Counts
from runtime.engine import Request
from runtime.metrics import Metrics
from runtime.observer import NullObserver
from runtime.prewarm import Wishes
from runtime.report import About, Report, decode, encode
from tests import tiny_models


@contextlib.asynccontextmanager
async def engine_over(folder: Path, **settings):
    told = {"store": str(folder), "device": "cpu", "budget": "1MiB", **settings}
    async with composed(Settings(**told), NullObserver()) as engine:
        yield engine


async def ask(engine, model: str) -> float:
    answer = await engine.predict(Request(model, {"x": torch.ones(1, 4)}))
    return answer.outputs[0][1][0, 0].item()


async def ready(engine) -> list[str]:
    return sorted(
        r.name for r in (await engine.snapshot()).residents if r.state == "READY"
    )


async def until_ready(engine, *names: str) -> None:
    """Prewarm works behind our back: asking the loop for turns is how one waits."""
    while await ready(engine) != sorted(names):  # noqa: ASYNC110
        await asyncio.sleep(0.01)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    folder = tmp_path / "store"
    for index in range(1, 6):
        tiny_models.linear(folder, f"m{index}", index)
    return folder


@pytest.fixture
def two(store: Path) -> str:
    """A budget of two models."""
    size = (store / "m1" / "1" / "model.safetensors").stat().st_size
    return str(2 * rounded(size))


async def test_named_models_are_in_before_anybody_asks(store) -> None:
    async with engine_over(store, prewarm="m2,m4:1, nobody,m1:9,m5") as engine:
        await until_ready(engine, "m2", "m4", "m5")
        assert sum((await engine.snapshot()).requests.values()) == 0


async def test_prewarm_ends_where_the_room_ends(store, two) -> None:
    async with engine_over(store, prewarm="m1,m2,m3,m4", budget=two) as engine:
        await until_ready(engine, "m1", "m2")
        assert await ask(engine, "m5") == 5
        assert (await engine.snapshot()).evictions == 1, "only for the request"


async def test_who_was_in_comes_in_again_the_last_used_first(
    store, tmp_path, two
) -> None:
    hot = tmp_path / "hot.txt"
    async with engine_over(store, prewarm=str(hot)) as engine:
        for name in ("m1", "m2", "m3", "m1"):
            await ask(engine, name)
    assert hot.read_text().split() == ["m1:1", "m3:1", "m2:1"]
    async with engine_over(store, prewarm=str(hot), budget=two) as engine:
        await until_ready(engine, "m1", "m3")
    assert sorted(hot.read_text().split()) == ["m1:1", "m3:1"]


@pytest.mark.parametrize("place", ["/proc/no/hot.txt", "./"])
async def test_a_file_that_cannot_be_written_hurts_nobody(store, place) -> None:
    async with engine_over(store, prewarm=place) as engine:
        assert await ask(engine, "m1") == 1


def test_a_wish_is_a_name_or_a_file() -> None:
    assert Wishes("a, b:3,").read() == [("a", ""), ("b", "3")]
    assert Wishes("a").file is None
    assert Wishes("./a").file == Path("a")


async def test_tiers_below_the_device(store, tmp_path, two) -> None:
    told = {
        "host_cache": two,
        "disk_cache": str(tmp_path / "disk"),
        "disk_cache_size": "1MiB",
    }
    async with engine_over(store, budget=two, **told) as engine:
        for name in ("m1", "m2", "m3", "m4", "m5", "m1", "m5"):
            assert await ask(engine, name) == float(name[1])
        # m1 left the host tier for others and came back from disk or the store,
        # whichever was faster; m5 was resident, or one copy away.
        snapshot = await engine.snapshot()
        assert snapshot.peak_held <= snapshot.capacity
        assert snapshot.tiers.space.reserved <= snapshot.capacity
        host, disk = snapshot.tiers.below
        assert (host.name, disk.name) == ("host", "disk")
        assert host.entries == 2
        assert sum(snapshot.tiers.loads.values()) == snapshot.loads
        (stats,) = await engine.statistics("m1")
        assert stats.bytes_by_tier["cpu"] == 256
        page, _ = Metrics(Counts(), "1").page(snapshot)
        for line in (
            'hotset_tier_up{tier="disk"} 1.0',
            f'hotset_tier_held_bytes{{tier="host"}} {float(host.held)}',
            f"hotset_arena_reserved_bytes {float(snapshot.tiers.space.reserved)}",
            f'hotset_tier_loads_total{{tier="store"}} '
            f"{float(snapshot.tiers.loads['store'])}",
        ):
            assert line in page.decode()
        about = About("x", "1", True)
        report = Report(about, snapshot)
        assert decode(encode(report)).snapshot == snapshot
        console = Console(width=200, file=io.StringIO())
        console.print(frame(report, None, Sort.NAME, None))
        assert f"host {host.held} B of {two} B   disk" in console.file.getvalue()
    assert (await engine.snapshot()).tiers.space.held == 0


async def test_a_broken_disk_leaves_a_server_without_the_tier(store) -> None:
    async with engine_over(store, disk_cache="/proc/no") as engine:
        assert await ask(engine, "m1") == 1
        (disk,) = (await engine.snapshot()).tiers.below
        assert not disk.up
        assert disk.failures > 0


async def test_a_reload_costs_what_the_tier_below_takes(store, two) -> None:
    """A model that would fall to the host tier is cheaper to lose."""
    costs = {}
    for host_cache in ("0", "1MiB"):
        async with engine_over(store, host_cache=host_cache) as engine:
            await ask(engine, "m1")
            (life,) = engine._cache.residencies.values()
            costs[host_cache] = engine._cache.room.candidate(life).reload_s
    assert 0 < costs["1MiB"] < costs["0"]


@pytest.mark.skipif(sys.platform != "linux", reason="threads have priorities on Linux")
@pytest.mark.skipif(
    os.getpriority(os.PRIO_PROCESS, 0) >= NICE, reason="all of us stand back as it is"
)
async def test_loading_threads_stand_back_and_the_others_do_not(store) -> None:
    async with engine_over(store) as engine:
        await ask(engine, "m1")
        nice = {
            thread.name: os.getpriority(os.PRIO_PROCESS, thread.native_id)
            for thread in threading.enumerate()
        }
    behind = ("loader", "folder")
    least = min(nice[name] for name in nice if name.startswith(behind))
    assert least > max(nice[name] for name in nice if not name.startswith(behind))


async def test_threads_take_short_turns_for_as_long_as_there_is_a_loader(store) -> None:
    before = sys.getswitchinterval()
    async with engine_over(store):
        assert sys.getswitchinterval() == pytest.approx(0.0005)
    assert sys.getswitchinterval() == before
