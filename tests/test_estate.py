"""What a host tier leaves to the next one, in memory that neither of them owns."""

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
import torch

from loader.estate import Estate, Left
from loader.estate_files import estate_files
from loader.host import HostTier
from tests import tiny_models
from tests.test_load import CPU
from tests.test_tiers import Bench

X = torch.ones(1, 4)
CAPACITY = 1 << 20


@pytest.fixture
def threads():
    with ThreadPoolExecutor(2) as threads:
        yield threads


class Life:
    """A loader whose host tier has inherited; it may end without a word."""

    def __init__(self, folder: Path, threads, files, capacity: int = CAPACITY) -> None:
        self.estate = Estate(*map(os.dup, files), pinned=False)
        self.host = HostTier(capacity, CPU, threads, self.estate)
        self.host.reserve()
        self.bench = Bench(folder, threads, host=self.host)

    async def load(self, name: str):
        return await self.bench.load(name)

    async def keep(self, *names: str) -> None:
        for name in names:
            await self.bench.loader.unload(await self.load(name))


def answer(model) -> float:
    return model.forward((X,))[0][0, 0].item()


@pytest.fixture
def store(tmp_path) -> Path:
    for index in range(1, 7):
        tiny_models.linear(tmp_path, f"m{index}", index, extra=90_000)
    return tmp_path


@pytest.fixture
def files():
    files = estate_files(CAPACITY)
    yield files
    for fd in files:
        os.close(fd)


async def test_the_next_one_finds_what_was_kept(store, threads, files) -> None:
    await Life(store, threads, files).keep("m1", "m2")
    life = Life(store, threads, files)
    assert life.host.tier().entries == 2
    for name, right in (("m1", 1.0), ("m2", 2.0), ("m3", 3.0)):
        model = await life.load(name)
        assert answer(model) == right
        assert model.tier == ("store" if name == "m3" else "host")


async def test_what_was_dropped_is_not_found(store, threads, files) -> None:
    first = Life(store, threads, files, capacity=300_000)
    await first.keep("m1", "m2", "m3", "m4", "m5")
    kept = first.host.tier().entries
    assert 1 <= kept < 5
    life = Life(store, threads, files, capacity=300_000)
    assert life.host.tier().entries == kept
    assert life.host.tier().held == first.host.tier().held
    assert (await life.load("m5")).tier == "host"
    assert (await life.load("m1")).tier == "store"


async def test_a_byte_that_changed_is_found_out(store, threads, files) -> None:
    first = Life(store, threads, files)
    await first.keep("m1", "m2")
    (left, _) = first.estate
    os.pwrite(files[0], b"\xff", left.start + 5)
    life = Life(store, threads, files)
    model = await life.load("m1")
    assert (model.tier, answer(model)) == ("store", 1.0)
    tier = life.host.tier()
    assert (tier.entries, tier.failures) == (1, 1)
    assert (await life.load("m2")).tier == "host"
    third = Life(store, threads, files)
    assert third.host.tier().entries == 1, "and it is told no further"


async def test_two_loads_of_one_copy_both_find_it_sound(store, threads, files) -> None:
    await Life(store, threads, files).keep("m1")
    life = Life(store, threads, files)
    models = await asyncio.gather(life.load("m1"), life.load("m1"))
    assert [(model.tier, answer(model)) for model in models] == [("host", 1.0)] * 2
    assert (life.host.tier().entries, life.host.tier().failures) == (1, 0)


async def test_lives_follow_each_other_without_losing_room(
    store, threads, files
) -> None:
    for _ in range(10):
        life = Life(store, threads, files, capacity=300_000)
        await life.keep("m1", "m2", "m3", "m4")
        assert life.host.tier().held <= 300_000
        model = await life.load("m4")
        assert (model.tier, answer(model)) == ("host", 4.0)
    pages = os.fstat(files[0]).st_blocks * 512
    assert pages <= 300_000 + (2 << 20), "what others touched has been given back"


async def test_an_orderly_end_leaves_nothing(store, threads, files) -> None:
    first = Life(store, threads, files)
    await first.keep("m1")
    first.host.close()
    assert Life(store, threads, files).host.tier().entries == 0


def record(number: int, header: bytes = b"x" * 1000) -> Left:
    return Left(f"id{number}", 0, number * 256, 100, 200, header, b"d" * 32)


def reopened(files) -> list[str]:
    return [left.identity for left in Estate(*map(os.dup, files), pinned=False)]


def test_the_list_is_written_anew_when_it_is_full(files) -> None:
    estate = Estate(*map(os.dup, files), pinned=False)
    for number in range(40_000):
        estate.came(record(number))
        if number >= 5:
            estate.went(f"id{number - 5}")
    assert reopened(files) == [f"id{n}" for n in range(39_995, 40_000)]


@pytest.mark.parametrize(
    "written", [(8, b"\xff\xff\xff\x7f"), (0, b"\xff" * 8), (12, b"\xc1garbage")]
)
def test_a_list_that_makes_no_sense_ends_there(files, written) -> None:
    estate = Estate(*map(os.dup, files), pinned=False)
    estate.came(record(1))
    at, data = written
    os.pwrite(files[1], data, at)
    assert reopened(files) in ([], ["id1"])


async def test_a_record_that_cannot_be_is_not_believed(store, threads, files) -> None:
    first = Life(store, threads, files)
    await first.keep("m1")
    (true,) = first.estate
    estate = Estate(*map(os.dup, files), pinned=False)
    estate.went(true.identity)
    lies = [{"start": -256}, {"start": 1 << 40}, {"slab": 99}, {"header": b"no"}]
    lies += [{"nbytes": 256}, {"nbytes": CAPACITY + 1}]
    for number, lie in enumerate(lies):
        estate.came(msgspec.structs.replace(true, identity=f"{number}", **lie))
    host = HostTier(CAPACITY, CPU, threads, Estate(*map(os.dup, files), pinned=False))
    host.reserve()
    assert (host.tier().entries, host.tier().held) == (0, 0)
    assert reopened(files) == []
