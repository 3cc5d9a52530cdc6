"""Pages that change places: no byte is lost, and two processes see alike."""

import ctypes
import errno
import itertools
import mmap
import os
import random

import pytest
import torch

from loader import region
from loader.arena import Arena
from loader.memory import HostMemory
from loader.region import Region
from loader.shared import SharedMemory
from loader.slab import rounded
from loader.slabs import Slabs
from loader.touched import Touched
from loader.trades import MOST_TILES, SMALLEST, tile_of, traded

PAGES = 64
PAGE = mmap.PAGESIZE


class Mapped:
    """A file in memory as one process sees it."""

    def __init__(self, fd: int, runs=((0, 0),)) -> None:
        self.memory = mmap.mmap(fd, PAGES * PAGE)
        self.region = Region(fd, self.memory, runs)

    def seen(self) -> list[int]:
        """What each page begins with."""
        return [self.memory[at] for at in range(0, PAGES * PAGE, PAGE)]

    def swap(self, there: int, behind: int, count: int) -> None:
        self.region.swap(there * PAGE, behind * PAGE, count * PAGE)


@pytest.fixture
def fd():
    fd = os.memfd_create("pages")
    os.ftruncate(fd, PAGES * PAGE)
    for index in range(PAGES):
        os.pwrite(fd, bytes([index]), index * PAGE)
    yield fd
    os.close(fd)


def records() -> int:
    """What the kernel keeps for this process' memory."""
    with open("/proc/self/maps") as maps:
        return sum("memfd:pages" in line for line in maps)


@pytest.mark.parametrize("seed", range(6))
def test_whatever_is_swapped_each_sees_every_page_once(fd, seed) -> None:
    chance, ours, theirs = random.Random(seed), Mapped(fd), Mapped(fd)
    wanted = list(range(PAGES))
    for _ in range(60):
        count = chance.randint(1, 8)
        first = chance.randint(0, PAGES - 2 * count)
        second = chance.randint(first + count, PAGES - count)
        there, behind = chance.sample((first, second), 2)
        ours.swap(there, behind, count)
        theirs.swap(there, behind, count)
        a, b = slice(there, there + count), slice(behind, behind + count)
        wanted[a], wanted[b] = wanted[b], wanted[a]
        assert ours.seen() == theirs.seen() == wanted
    assert Mapped(fd, ours.region.runs).seen() == wanted, "who comes later sees it too"
    runs = ours.region.runs
    ends = [seen for seen, _ in runs[1:]] + [PAGES * PAGE]
    lengths = [end - seen for (seen, _), end in zip(runs, ends, strict=True)]
    assert sum(lengths) == PAGES * PAGE
    for (seen, file), (after, next_file) in itertools.pairwise(runs):
        assert next_file - file != after - seen, "one run is told as two"


def test_what_is_swapped_back_is_one_run_and_one_record_again(fd) -> None:
    ours, before = Mapped(fd), records()
    ours.swap(3, 40, 5)
    assert records() > before
    ours.swap(40, 3, 5)
    assert ours.region.runs == [(0, 0)]
    assert records() == before


def test_what_is_written_after_a_swap_is_seen_by_the_other(fd) -> None:
    ours, theirs = Mapped(fd), Mapped(fd)
    for each in (ours, theirs):
        each.swap(8, 32, 4)
    ours.memory[9 * PAGE] = 200
    assert theirs.memory[9 * PAGE] == 200
    assert os.pread(fd, 1, 33 * PAGE) == b"\xc8", "it lies where the page came from"


def test_only_whole_tiles_are_traded_and_small_ranges_first() -> None:
    tile = 2 * SMALLEST
    big = (100 * tile + 1, 200 * tile - 1)
    small = (300 * tile + 5, 303 * tile)
    trades, left = traded([(1, 10 * tile + 1)], [big, small], 3 * tile - 1, tile)
    assert [behind // tile for _, behind, _ in trades] == [301, 101]
    assert all(value % tile == 0 for trade in trades for value in trade)
    gone = sum(nbytes for _, _, nbytes in trades)
    assert gone == 3 * tile
    before = sum(end - start for start, end in (big, small))
    assert sum(end - start for start, end in left) == before - gone
    assert traded([(1, tile)], [big], tile, tile) == ([], [big]), "no whole tile there"
    assert traded([(0, tile)], [(1, tile)], 1, tile) == ([], [(1, tile)])


@pytest.mark.parametrize("nbytes", [1, 1 << 20, 1 << 30, (1 << 36) + 1])
def test_a_slab_has_so_many_tiles_and_no_more(nbytes) -> None:
    tile = tile_of(nbytes)
    assert tile * MOST_TILES >= nbytes
    assert tile == SMALLEST or tile // 2 * MOST_TILES < nbytes
    assert tile % PAGE == 0


def test_what_was_never_touched_is_all_but_what_was() -> None:
    touched = Touched([(10, 20), (20, 30), (50, 60)])
    assert touched.not_of(0, 100) == [(0, 10), (30, 50), (60, 100)]
    assert touched.not_of(15, 55) == [(30, 50)]
    assert touched.not_of(12, 28) == []
    assert touched.not_of(70, 80) == [(70, 80)]


def resident(memory: SharedMemory) -> int:
    """Bytes of its files that the kernel really has."""
    return sum(os.fstat(g.fd).st_blocks * 512 for g in memory.grounds.values())


def stays(slabs, capacity: int, sizes: tuple[int, int], count: int):
    """Models come, each full of a number of its own, and go by chance for the next;
    who is there after each, with their numbers."""
    chance, live = random.Random(0), []
    for number in range(1, count):
        nbytes = chance.randint(*sizes)
        while slabs.arena.held + rounded(nbytes) > capacity:
            slabs.free(live.pop(chance.randrange(len(live)))[0])
        block = slabs.take(nbytes)
        assert block is not None
        slabs.buffer(block).fill_(number % 251)
        live.append((block, number % 251))
        slabs._shedding.over()  # a thread's work: until then nobody has the place
        assert slabs.arena.touched <= capacity
        assert slabs.arena.held == sum(block.nbytes for block, _ in live)
        yield live
    slabs.close()


@pytest.mark.parametrize("kind", [SharedMemory, HostMemory])
def test_models_of_all_sizes_come_and_go_and_keep_their_bytes(kind):
    """What is touched stays within the capacity, whoever gives the pages."""
    memory, capacity, swaps = kind(), 64 << 20, []
    if kind is SharedMemory:
        memory.swapped = lambda number, trades: swaps.extend(trades)
    slabs = Slabs(memory, lambda: capacity)
    for live in stays(slabs, capacity, (300_000, 9_000_000), 400):
        for block, value in live:
            seen = slabs.buffer(block)
            assert int(seen[0]) == int(seen[-1]) == value
            assert int(seen[len(seen) // 2]) == value
    assert all(bool((slabs.buffer(b) == v).all()) for b, v in live)
    if kind is SharedMemory:
        assert len(swaps) > 50
        assert resident(memory) <= capacity + 64 * PAGE


def test_an_arena_that_is_not_full_trades_nothing() -> None:
    roomy = Arena(lambda: 64 << 20, lazy=True)
    roomy.add(256 << 20)
    gone, _ = roomy.take(2 << 20), roomy.take(2 << 20)
    roomy.free(gone)
    block = roomy.take(5 << 20)
    assert block.fresh, "new pages, though two megabytes were left"
    assert roomy.trades_for(block) == []


def test_tensors_see_the_pages_that_came() -> None:
    memory = SharedMemory()
    slab = memory.slab(16 * SMALLEST)
    slab[4 * SMALLEST : 5 * SMALLEST] = 7
    view = slab[:SMALLEST]
    assert memory.swap(slab, [(0, 4 * SMALLEST, SMALLEST)]) == 1
    assert bool((view == 7).all())
    assert torch.equal(slab[4 * SMALLEST : 5 * SMALLEST], torch.zeros(SMALLEST).byte())


class Books:
    """The kernel's, which take so many records more."""

    def __init__(self, room: int) -> None:
        self.room = room
        self._mmap = region._libc.mmap

    def mmap(self, *args) -> int:
        self.room -= 1
        if self.room == -1:
            ctypes.set_errno(errno.ENOMEM)
            return region._FAILED
        return self._mmap(*args)


@pytest.mark.parametrize("room", [0, 1])
def test_a_swap_that_fails_has_changed_nothing(fd, monkeypatch, room) -> None:
    ours = Mapped(fd)
    ours.swap(2, 30, 4)
    seen, runs = ours.seen(), ours.region.runs
    monkeypatch.setattr(region, "_libc", Books(room))
    with pytest.raises(OSError, match="did not change places"):
        ours.swap(3, 50, 6)
    assert (ours.seen(), ours.region.runs) == (seen, runs)
    ours.swap(3, 50, 6)
    assert ours.seen() == Mapped(fd, ours.region.runs).seen() != seen


def test_where_no_more_is_swapped_pages_are_given_back(monkeypatch) -> None:
    memory, told = SharedMemory(), []
    memory.swapped = lambda number, trades: told.extend(trades)
    slabs, capacity = Slabs(memory, lambda: capacity), 8 << 20
    monkeypatch.setattr(region, "_libc", Books(2))
    for live in stays(slabs, capacity, (200_000, 3_000_000), 120):
        assert all(bool((slabs.buffer(b) == v).all()) for b, v in live)
        assert resident(memory) <= capacity + 64 * PAGE
    assert len(told) == 1, "one, then the books were full"


def test_the_address_of_a_slab_that_is_gone_is_the_next_ones() -> None:
    memory, told = SharedMemory(), []
    slab = memory.slab(4 * SMALLEST)
    looked_at, address = slab[:1], slab.data_ptr()
    del slab
    memory.gave_back()  # too early: somebody looks at it
    del looked_at
    (gone,) = memory.grounds
    slab = memory.slab(4 * SMALLEST)
    if slab.data_ptr() != address:
        pytest.skip("the kernel chose another address")
    memory.swapped = lambda number, trades: told.append(number)
    slab[:SMALLEST] = 5
    assert memory.swap(slab, [(SMALLEST, 0, SMALLEST)]) == 1
    assert told == [gone + 1]
    assert memory.of(slab) == (gone + 1, 0)
    assert bool((slab[SMALLEST : 2 * SMALLEST] == 5).all())
