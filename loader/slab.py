"""A slab, and the blocks in it.

Every model is one contiguous block. Sizes are rounded up to 1/256 of their own
magnitude, at least to 256 bytes, at most to 2 MiB: a block of 300 KB wastes less than
0.4 % (fixed classes of 64 KiB would waste a tenth of it), and the bases stay aligned
for any kernel. Fixed classes would fight fragmentation by waste; here models of one
graph are of one size anyway and fill each other's holes exactly, and what is left is
compacted (loader/compaction.py).

Owns: what they are, and how sizes are rounded. Must not: choose a place.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

GRANULE = 256
LARGEST_GRANULE = 2 << 20


def rounded(nbytes: int) -> int:
    """The bytes a block of `nbytes` takes. Never less for more."""
    step = 1 << max(0, nbytes.bit_length() - 9)
    step = min(max(step, GRANULE), LARGEST_GRANULE)
    return max(1, -(-nbytes // step)) * step


@dataclass(eq=False, slots=True)
class Slab:
    """A stretch of memory. `blocks` lie in order of their starts."""

    nbytes: int
    blocks: list["Block"] = field(default_factory=list)
    left: list[tuple[int, int]] = field(default_factory=list)
    """(start, end) of what blocks have left behind: nobody's, counted as touched."""

    def holes(self) -> Iterator[tuple[int, int]]:
        """(start, end) of what is free, in order."""
        at = 0
        for block in self.blocks:
            if block.start > at:
                yield at, block.start
            at = block.end
        if at < self.nbytes:
            yield at, self.nbytes

    def is_free(self, start: int, end: int, but: "Block | None" = None) -> bool:
        """True if nobody but `but` has a byte of `[start, end)`."""
        return end <= self.nbytes and all(
            b is but or b.end <= start or end <= b.start for b in self.blocks
        )


@dataclass(eq=False, slots=True)
class Block:
    """One model's bytes: `[start, start + nbytes)` of a slab; None once freed."""

    slab: Slab | None
    start: int
    nbytes: int
    group: str
    fresh: list[tuple[int, int]] = field(default_factory=list)
    """(start, end) of what nobody had touched when it was taken; till
    `Arena.trades_for`."""

    @property
    def end(self) -> int:
        """Where the next one may begin."""
        return self.start + self.nbytes
