"""The arena against a brute-force model that knows every byte's owner."""

import asyncio
import itertools
import mmap
import sys
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from loader import arena as arena_module
from loader.arena import ONE_SLAB, Arena
from loader.compaction import plan
from loader.memory import HUGE, SHED, HostMemory
from loader.shared import SharedMemory
from loader.slab import GRANULE, Slab, rounded
from loader.slabs import Slabs


@given(st.integers(0, 1 << 40), st.integers(0, 1 << 30))
def test_rounding_is_monotone_and_wastes_little(nbytes: int, more: int) -> None:
    taken = rounded(nbytes)
    assert taken >= nbytes
    assert taken % GRANULE == 0
    assert taken <= rounded(nbytes + more)
    assert taken - nbytes < max(GRANULE, nbytes / 256 + 1) or nbytes == 0


@pytest.mark.parametrize(
    ("nbytes", "taken"),
    [(0, 256), (1, 256), (80, 256), (257, 512), (300_000, 300_032), (1 << 20, 1 << 20),
     ((1 << 20) + 1, (1 << 20) + 4096), ((1 << 30) + 1, (1 << 30) + (2 << 20))],
)  # fmt: skip
def test_rounding_by_hand(nbytes: int, taken: int) -> None:
    assert rounded(nbytes) == taken


def fixed(*slabs: int, capacity: int = 1 << 40) -> Arena:
    made = Arena(lambda: capacity)
    for nbytes in slabs:
        made.add(nbytes)
    return made


def test_models_of_one_graph_lie_at_a_constant_stride() -> None:
    arena = fixed(64 * GRANULE)
    blocks = []
    for index in range(8):
        blocks.append(arena.take(GRANULE * 2, "a"))
        if index % 2:
            arena.take(GRANULE, f"x{index}")
    # Strangers stand between some of them; the holes they leave are filled in place.
    arena.free(blocks[3])
    again = arena.take(GRANULE * 2, "a")
    assert again.start == blocks[3].start


def test_a_group_grows_at_its_own_end_although_a_smaller_hole_is_elsewhere() -> None:
    arena = fixed(64 * GRANULE)
    first = arena.take(GRANULE, "other")
    arena.take(GRANULE, "a")
    arena.free(first)
    assert arena.take(GRANULE, "a").start == 0, "right before its kin"
    assert arena.take(GRANULE, "a").start == 2 * GRANULE


def test_small_arenas_are_one_slab_large_ones_are_eight() -> None:
    small = Arena(lambda: 12_000_000)
    assert small.growth(300_000) == (12_000_000, [])
    large = Arena(lambda: 80 * ONE_SLAB)
    assert large.growth(300_000) == (10 * ONE_SLAB, [])
    assert large.growth(11 * ONE_SLAB)[0] == 11 * ONE_SLAB


def test_growth_never_exceeds_the_capacity() -> None:
    capacity = 10 * GRANULE
    arena = Arena(lambda: capacity)
    arena.add(6 * GRANULE)
    assert arena.growth(3 * GRANULE) == (4 * GRANULE, [])
    arena.take(GRANULE)
    assert arena.growth(5 * GRANULE) == (0, [])


def test_an_empty_slab_makes_way_for_a_larger_one() -> None:
    arena = Arena(lambda: 10 * GRANULE)
    slab = arena.add(6 * GRANULE)
    assert arena.growth(8 * GRANULE) == (10 * GRANULE, [slab])


def test_empty_slabs_are_surplus_when_the_capacity_shrinks() -> None:
    capacity = 30
    arena = Arena(lambda: capacity * GRANULE)
    for _ in range(3):
        arena.add(10 * GRANULE)
    used = arena.slabs[0]
    used.blocks.append(arena_module.Block(used, 0, GRANULE, ""))
    assert arena.surplus() == []
    capacity = 15
    assert len(arena.surplus()) == 2
    assert used not in arena.surplus()


def test_a_whole_arena_is_one_slab_that_stays() -> None:
    arena = Arena(lambda: 10 * ONE_SLAB, whole=True)
    assert arena.growth(11 * ONE_SLAB) == (0, [])
    assert arena.growth(1) == (10 * ONE_SLAB, [])
    arena.add(10 * ONE_SLAB)
    assert arena.growth(1) == (0, [])
    arena.capacity = lambda: 0
    assert arena.surplus() == []


class Locked(HostMemory):
    """Counts as pinned memory does: there at once, and told of when it goes."""

    lazy = False

    def __init__(self) -> None:
        self.gone = 0
        self.made: list[int] = []

    def slab(self, nbytes: int) -> torch.Tensor:
        assert len(self.made) < 20, "it never ends"
        self.made.append(nbytes)
        return super().slab(nbytes)

    def gave_back(self) -> None:
        self.gone += 1


@pytest.mark.parametrize("whole", [True, False])
def test_what_is_reserved_is_the_capacity_and_no_more(whole) -> None:
    memory, capacity = Locked(), (5 << 30) + 12_345
    slabs = Slabs(memory, lambda: capacity, whole=whole)
    slabs.reserve()
    assert capacity - (2 << 20) < sum(memory.made) <= capacity
    slabs.reserve()
    assert sum(memory.made) <= capacity


def test_locked_memory_stays_whoever_comes_and_goes() -> None:
    memory, capacity = Locked(), 12 << 30
    slabs = Slabs(memory, lambda: capacity, whole=True)
    slabs.reserve()
    for nbytes in (1 << 30, 11 << 30, 12 << 30, 13 << 30, 5):
        block = slabs.take(nbytes)
        assert (block is None) == (nbytes > capacity)
        if block is not None:
            slabs.free(block)
    assert memory.made == [capacity]
    assert memory.gone == 0


def test_fragmentation_is_the_share_outside_the_largest_hole() -> None:
    arena = fixed(8 * GRANULE)
    assert arena.fragmentation == 0
    blocks = [arena.take(GRANULE) for _ in range(8)]
    for block in blocks[::2]:
        arena.free(block)
    assert arena.fragmentation == 0.75


def test_compaction_moves_the_fewest_bytes() -> None:
    arena = fixed(16 * GRANULE)
    big, small = arena.take(6 * GRANULE), arena.take(GRANULE)
    gaps = [arena.take(n * GRANULE) for n in (2, 1, 2, 4)]
    # big(0-6) small(6-7) gap(7-9) 1(9-10) gap(10-12) 4(12-16)
    arena.free(gaps[0])
    arena.free(gaps[2])
    moves = plan(arena.slabs, 4 * GRANULE, lambda b: True)
    assert [(m.block, m.start) for m in moves] == [(gaps[1], 7 * GRANULE)]
    assert big.start == small.start - 6 * GRANULE


def test_nobody_in_use_moves() -> None:
    arena = fixed(5 * GRANULE)
    blocks = [arena.take(GRANULE) for _ in range(5)]
    arena.free(blocks[0])
    arena.free(blocks[2])
    assert plan(arena.slabs, 2 * GRANULE, lambda b: b is not blocks[1]) is None
    assert plan(arena.slabs, 2 * GRANULE, lambda b: b is blocks[1]) is not None


def test_a_slab_lends_from_the_holes_of_another() -> None:
    arena = fixed(4 * GRANULE, 4 * GRANULE)
    blocks = [arena.take(GRANULE) for _ in range(8)]
    for block in (blocks[0], blocks[1], blocks[4]):
        arena.free(block)
    moves = plan(arena.slabs, 3 * GRANULE, lambda b: True)
    assert len(moves) == 2 or len(moves) == 1
    for move in moves:
        arena.move(move.block, move.slab, move.start)
    assert arena.take(3 * GRANULE) is not None


def test_lazy_memory_has_addresses_to_spare_and_sheds_what_was_left() -> None:
    """Nothing moves; yet never more is touched than the capacity."""
    capacity = 10 * GRANULE
    arena = Arena(lambda: capacity, lazy=True)
    assert arena.growth(GRANULE) == (40 * GRANULE, [])
    arena.add(40 * GRANULE)
    blocks = [arena.take(GRANULE) for _ in range(10)]
    assert arena.shed() == []
    for block in blocks[::2]:
        arena.free(block)
    assert arena.touched == 10 * GRANULE
    large = arena.take(5 * GRANULE)
    assert large is not None
    going = arena.shed()
    assert sum(block.nbytes for block in going) == 5 * GRANULE
    assert arena.touched == arena.cost == arena.held == 10 * GRANULE
    assert not any(arena.restore(b.slab, b.start, GRANULE) for b in going), "not yet"
    for block in going:
        arena.shed_done(block)
    arena.free(large)
    assert arena.take(3 * GRANULE).start == large.start
    assert arena.touched == 10 * GRANULE, "what is warm is used again"
    assert arena.shed() == []


def test_a_block_may_need_less_than_it_took() -> None:
    arena = Arena(lambda: 10 * GRANULE, lazy=True)
    arena.add(40 * GRANULE)
    block = arena.take(4 * GRANULE)
    arena.trim(block, 2 * GRANULE + 1)
    assert (block.nbytes, arena.held) == (3 * GRANULE, 3 * GRANULE)
    assert arena.touched == 4 * GRANULE, "its tail may have been written"
    arena.trim(block, 4 * GRANULE)
    assert block.nbytes == 3 * GRANULE, "never more"
    after = arena.take(GRANULE)
    assert after.start == 3 * GRANULE
    arena.free(block)
    arena.free(after)
    assert arena.held == 0


class Slow(HostMemory):
    """Gives memory back when it is told that it may."""

    def __init__(self) -> None:
        self.may = threading.Event()
        self.asked = threading.Event()

    def shed(self, unused) -> None:
        self.asked.set()
        self.may.wait()


async def test_who_has_no_room_waits_for_what_is_given_back() -> None:
    capacity, memory = 4 * GRANULE, Slow()
    slabs = Slabs(memory, lambda: capacity)
    blocks = [slabs.take(GRANULE) for _ in range(4)]
    (slab,) = slabs.arena.slabs
    slab.nbytes = 4 * GRANULE  # no addresses to spare
    for block in blocks[:2]:
        slabs.arena.free(block)
    capacity = 2 * GRANULE
    slabs.shrink()
    await asyncio.to_thread(memory.asked.wait)
    capacity = 4 * GRANULE
    slabs.arena.add = None  # nor another slab
    slabs.arena.growth = lambda nbytes: (0, [])
    finding = asyncio.create_task(slabs.find(2 * GRANULE, ""))
    await asyncio.sleep(0)
    assert slabs.take(GRANULE) is None
    assert not finding.done()
    memory.may.set()
    assert (await finding).start == 0
    slabs.close()


async def test_no_more_than_a_part_is_on_its_way_back() -> None:
    """Else as much would be touched as loads bring while the thread sleeps."""
    capacity, memory = 32 * GRANULE, Slow()
    slabs = Slabs(memory, lambda: capacity)
    blocks = [slabs.take(GRANULE) for _ in range(32)]
    for block in blocks[::2]:
        slabs.arena.free(block)
    await slabs.find(2 * GRANULE, "")  # of new pages: two old ones must go
    await asyncio.to_thread(memory.asked.wait)
    second = asyncio.create_task(slabs.find(2 * GRANULE, ""))
    third = asyncio.create_task(slabs.find(GRANULE, ""))
    _, waiting = await asyncio.wait({second, third}, timeout=0.05)
    assert waiting
    memory.may.set()
    await asyncio.gather(second, third)
    slabs.close()


class Bytes(RuleBasedStateMachine):
    """Each granule of each slab, and who wrote it."""

    def __init__(self) -> None:
        super().__init__()
        self.capacity = 32 * GRANULE
        self.arena = Arena(lambda: self.capacity)
        self.owners: dict[Slab, list[object]] = {}
        self.blocks: list = []
        self.busy: set = set()

    def paint(self, block, owner) -> None:
        for at in range(block.start // GRANULE, block.end // GRANULE):
            self.owners[block.slab][at] = owner

    def longest(self, immovable=lambda owner: True) -> int:
        best = 0
        for owners in self.owners.values():
            run = 0
            for owner in owners:
                if owner is None:
                    run += 1
                    best = max(best, run)
                elif immovable(owner):
                    run = 0
        return best * GRANULE

    @rule(size=st.integers(1, 20), group=st.sampled_from(["", "a", "b"]))
    def take(self, size: int, group: str) -> None:
        need, longest = size * GRANULE, self.longest()
        block = self.arena.take(need - 1, group)
        assert (block is not None) == (longest >= need)
        if block is None:
            nbytes, going = self.arena.growth(need)
            for slab in going:
                self.arena.drop(slab)
                assert set(self.owners.pop(slab)) <= {None}
            if not nbytes:
                return
            assert nbytes >= need
            slab = self.arena.add(nbytes)
            self.owners[slab] = [None] * (nbytes // GRANULE)
            block = self.arena.take(need, group)
            assert block is not None
        at = slice(block.start // GRANULE, block.end // GRANULE)
        assert set(self.owners[block.slab][at]) == {None}, "somebody lives there"
        self.paint(block, block)
        self.blocks.append(block)

    @precondition(lambda self: self.blocks)
    @rule(data=st.data())
    def free(self, data) -> None:
        block = data.draw(st.sampled_from(self.blocks))
        self.paint(block, None)
        self.blocks.remove(block)
        self.busy.discard(block)
        self.arena.free(block)
        with pytest.raises(AssertionError, match="twice"):
            self.arena.free(block)

    @precondition(lambda self: self.blocks)
    @rule(data=st.data())
    def lease(self, data) -> None:
        self.busy ^= {data.draw(st.sampled_from(self.blocks))}

    @rule(capacity=st.integers(0, 48))
    def resize(self, capacity: int) -> None:
        self.capacity = capacity * GRANULE
        for slab in self.arena.surplus():
            self.arena.drop(slab)
            assert set(self.owners.pop(slab)) <= {None}

    @rule(size=st.integers(1, 20))
    def compact(self, size: int) -> None:
        need = size * GRANULE
        moves = plan(self.arena.slabs, need, lambda b: b not in self.busy)
        if moves is None:
            assert self.longest(lambda owner: owner in self.busy) < need, (
                "sliding within one slab would have done"
            )
            return
        for move in moves:
            assert move.block not in self.busy
            self.paint(move.block, None)
            self.arena.move(move.block, move.slab, move.start)
            at = slice(move.block.start // GRANULE, move.block.end // GRANULE)
            assert set(self.owners[move.slab][at]) == {None}, "onto somebody else"
            self.paint(move.block, move.block)
        assert self.longest() >= need

    @invariant()
    def the_books_are_right(self) -> None:
        assert self.arena.held == sum(b.nbytes for b in self.blocks)
        painted = sum(o is not None for owners in self.owners.values() for o in owners)
        assert painted * GRANULE == self.arena.held
        assert self.arena.held <= self.arena.touched <= self.arena.reserved
        for slab in self.arena.slabs:
            assert all(slab.is_free(start, end) for start, end in slab.left)
            spans = sorted(slab.left)
            assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))
        assert list(self.owners) == self.arena.slabs


TestBytes = Bytes.TestCase
TestBytes.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize("kind", [HostMemory, SharedMemory])
def test_shedding_takes_no_byte_of_a_neighbour(kind) -> None:
    """Blocks do not end where pages do; what is shed must not reach into them."""
    memory = kind()
    slab = memory.slab(64 * mmap.PAGESIZE)
    for start in (0, 256, mmap.PAGESIZE - 256, mmap.PAGESIZE):
        for size in (256, 5_120, mmap.PAGESIZE, 3 * mmap.PAGESIZE + 512):
            slab.fill_(7)
            memory.shed(slab[start : start + size])
            kept = torch.cat([slab[:start], slab[start + size :]])
            assert bool((kept == 7).all()), (start, size)
    slab.fill_(7)
    memory.shed(slab[: 8 * mmap.PAGESIZE])
    assert not bool(slab[: 8 * mmap.PAGESIZE].any()), "nothing was given back"


@pytest.mark.parametrize("kind", [HostMemory, SharedMemory])
def test_what_is_more_than_is_given_back_at_a_time_goes_whole(kind) -> None:
    memory, page = kind(), mmap.PAGESIZE
    size = 2 * SHED + 3 * page
    slab = memory.slab(size + 4 * page)
    slab.fill_(7)
    memory.shed(slab[page + 1 : page + 1 + size])
    first, last = 2 * page, page + 1 + size - (1 + size) % page
    assert not bool(slab[first:last].any())
    assert bool((slab[:first] == 7).all())
    assert bool((slab[last:] == 7).all())


def huge_bytes() -> int:
    """Of this process, in huge pages."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(v.split()[1]) for v in lines if v.startswith("AnonHuge")) << 10


@pytest.mark.skipif(sys.platform != "linux", reason="nobody says so elsewhere")
def test_what_is_touched_again_is_touched_in_huge_pages_again() -> None:
    before = huge_bytes()
    memory = HostMemory()
    slab = memory.slab(16 * HUGE)
    slab.fill_(7)
    if huge_bytes() - before < 15 * HUGE:
        pytest.skip("no huge pages are to be had here")
    memory.shed(slab)
    slab.fill_(7)
    assert huge_bytes() - before >= 13 * HUGE
