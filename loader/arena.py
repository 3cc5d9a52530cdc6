"""The arena: which bytes of a few large slabs belong to whom. Bookkeeping only.

Owns: slabs, blocks, holes, and when a slab may come or go. Must not: touch memory
(loader/slabs.py does) or decide who leaves (the cache does).

Every model is one contiguous block (loader/slab.py). What is left between them is
compacted (loader/compaction.py).

Small arenas are one slab, so that no byte of the budget is lost to the ends of slabs.
Larger ones are up to SLABS of them, each of which can be given back when the budget
shrinks. There a model may find its bytes free, but in two slabs, and the cache evicts
one model more.

Memory that is backed lazily (host memory) costs what is touched of it, and addresses
cost nothing: a slab there has STRETCH times the capacity, so that hardly anything is
ever moved, and what was left behind is shed before more than the capacity is touched.

Memory that is locked for a device must be told of before it goes, so it is `whole`: one
slab of a capacity that never changes, there until the arena's owner ends.
"""

from bisect import insort
from collections.abc import Callable, Sequence

from loader.slab import LARGEST_GRANULE, Block, Slab, rounded
from loader.touched import Touched
from loader.trades import Trade, tile_of, traded

ONE_SLAB = 1 << 30
"""Up to this capacity there is one slab."""
SLABS = 8
STRETCH = 4
LAZY_SLABS = 4


class Arena:
    """Blocks within slabs within `capacity()`, which may change at any time."""

    def __init__(
        self, capacity: Callable[[], int], lazy: bool = False, whole: bool = False
    ) -> None:
        self.capacity = capacity
        self.lazy = lazy
        self.whole = whole
        self.slabs: list[Slab] = []
        self.held = 0
        self.compactions = 0
        self.moved_bytes = 0

    @property
    def reserved(self) -> int:
        """The bytes of all slabs."""
        return sum(slab.nbytes for slab in self.slabs)

    @property
    def touched(self) -> int:
        """The bytes that are used, or were: what a lazily backed arena costs."""
        return self.held + sum(
            end - start for slab in self.slabs for start, end in slab.left
        )

    @property
    def cost(self) -> int:
        """The bytes that the device is short of because of us."""
        return self.touched if self.lazy else self.reserved

    @property
    def fragmentation(self) -> float:
        """Share of the free bytes that lies outside the largest hole; 0 is best."""
        sizes = [end - start for slab in self.slabs for start, end in slab.holes()]
        return 1 - max(sizes) / sum(sizes) if sizes else 0.0

    def take(self, nbytes: int, group: str = "") -> Block | None:
        """A block of `rounded(nbytes)` in a hole, None if there is none large enough.

        Where memory is backed lazily, where the fewest bytes are touched for the first
        time: the kernel clears each of these, which takes as long as reading them.
        Then beside a block of the same group if possible, so that a graph's models lie
        at a constant stride; else in the smallest hole, lowest first.
        """
        need = rounded(nbytes)
        best: tuple[tuple[int, bool, int], Slab, int, Touched | None] | None = None
        for slab in self.slabs:
            starts = {b.start for b in slab.blocks if group and b.group == group}
            ends = {b.end for b in slab.blocks if group and b.group == group}
            touched = Touched(slab.left) if self.lazy else None
            for start, end in slab.holes():
                if end - start < need:
                    continue
                after, before = start in ends, end in starts
                at = end - need if before and not after else start
                stranger = not (after or before)
                fresh = 0
                if touched is not None:
                    fresh, spot = touched.spot(start, end, need, at)
                    stranger, at = stranger or spot != at, spot
                rank = fresh, stranger, end - start
                if best is None or rank < best[0]:
                    best = rank, slab, at, touched
        if best is None:
            return None
        _, slab, at, touched = best
        block = Block(slab, at, need, group)
        if touched is not None:
            block.fresh = touched.not_of(block.start, block.end)
        self._put(block)
        self.held += need
        return block

    def restore(self, slab: Slab, start: int, nbytes: int) -> Block | None:
        """A block where another life of this arena had one; None if that cannot be."""
        need = rounded(nbytes)
        fits = self.held + need <= self.capacity()
        if start < 0 or not fits or not slab.is_free(start, start + need):
            return None
        block = Block(slab, start, need, "")
        self._put(block)
        self.held += need
        return block

    def _put(self, block: Block) -> None:
        assert block.slab is not None
        insort(block.slab.blocks, block, key=lambda b: b.start)
        block.slab.left = [
            part
            for start, end in block.slab.left
            for part in ((start, min(end, block.start)), (max(start, block.end), end))
            if part[0] < part[1]
        ]

    def _leave(self, block: Block) -> None:
        assert block.slab is not None
        block.slab.blocks.remove(block)
        block.slab.left.append((block.start, block.end))

    def free(self, block: Block) -> None:
        """The block's bytes are nobody's any more."""
        if block.slab is None:
            raise AssertionError("A block was freed twice. This is a bug.")
        self._leave(block)
        block.slab = None
        self.held -= block.nbytes

    def trim(self, block: Block, nbytes: int) -> None:
        """The block needs only its first `nbytes`."""
        need = rounded(nbytes)
        if block.slab is None or need >= block.nbytes:
            return
        block.slab.left.append((block.start + need, block.end))
        self.held -= block.nbytes - need
        block.nbytes = need

    def move(self, block: Block, slab: Slab, start: int) -> None:
        """The block's bytes have been copied: it lives at `start` of `slab` now."""
        if block.slab is None or not slab.is_free(start, start + block.nbytes, block):
            raise AssertionError("A block may not move there. This is a bug.")
        self._leave(block)
        block.slab, block.start = slab, start
        self._put(block)
        self.moved_bytes += block.nbytes

    def growth(self, nbytes: int) -> tuple[int, list[Slab]]:
        """How large a slab may be added for `nbytes`, and the empty slabs that must go
        first; (0, []) if there is no room for one even then."""
        need, capacity = rounded(nbytes), self.capacity()
        if self.whole:
            return (capacity if not self.slabs and need <= capacity else 0), []
        if self.lazy:
            may = self.held + need <= capacity and len(self.slabs) < LAZY_SLABS
            return (capacity * STRETCH if may else 0), []
        step = capacity if capacity <= ONE_SLAB else max(ONE_SLAB, capacity // SLABS)
        room = capacity - self.reserved
        if room >= need:
            return min(room, max(step, need)), []
        empty = [slab for slab in self.slabs if not slab.blocks]
        room += sum(slab.nbytes for slab in empty)
        if empty and room >= need:
            return min(room, max(step, need)), empty
        return 0, []

    def add(self, nbytes: int) -> Slab:
        """A slab came."""
        slab = Slab(nbytes)
        self.slabs.append(slab)
        return slab

    def drop(self, slab: Slab) -> None:
        """A slab goes. It must be empty."""
        if slab.blocks:
            raise AssertionError("A slab in use was dropped. This is a bug.")
        self.slabs.remove(slab)

    def trades_for(self, block: Block) -> list[Trade]:
        """Pages that are to change places, so that no more than the capacity is
        touched: a new block has what others left, and those behind count as never
        touched from now on. `keep` what was not made."""
        assert block.slab is not None
        fresh, block.fresh = block.fresh, []
        over = self.touched - self.capacity()
        if over <= 0 or not fresh:
            return []
        left = Touched(block.slab.left).ranges()
        tile = tile_of(block.slab.nbytes)
        found, block.slab.left = traded(fresh, left, over, tile)
        return found

    def keep(self, slab: Slab, trades: Sequence[Trade]) -> None:
        """These were not made: what lay behind is still touched."""
        slab.left += [(behind, behind + nbytes) for _, behind, nbytes in trades]

    def shed(self) -> list[Block]:
        """What must be given back for the touched bytes to be no more than the
        capacity. Nobody's, and nobody may have it, until `shed_done`; it counts as
        never touched from now on."""
        over, going = self.touched - self.capacity(), []
        for slab in self.slabs:
            while over > 0 and slab.left:
                start, end = slab.left.pop(0)
                part = -(-over // LARGEST_GRANULE) * LARGEST_GRANULE
                if end - start > part:
                    slab.left.insert(0, (start, end - part))
                    start = end - part
                block = Block(slab, start, end - start, "")
                insort(slab.blocks, block, key=lambda b: b.start)
                going.append(block)
                over -= end - start
        return going

    def shed_done(self, block: Block) -> None:
        """Its pages are gone: others may have the place."""
        assert block.slab is not None
        block.slab.blocks.remove(block)
        block.slab = None

    def surplus(self) -> list[Slab]:
        """Empty slabs that the capacity has no room for any more."""
        if self.whole:
            return []
        over, going = self.cost - self.capacity(), []
        for slab in sorted(self.slabs, key=lambda s: s.nbytes):
            if over > 0 and not slab.blocks:
                going.append(slab)
                over -= slab.nbytes
        return going
