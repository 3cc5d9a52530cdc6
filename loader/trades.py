"""Which touched pages change places with new ones (loader/region.py does it).

Owns: that choice, and the size of what is traded. Must not: touch memory, or remember
anything. All in bytes from the start of a slab.
"""

import mmap

SMALLEST = max(mmap.PAGESIZE, 64 << 10)
"""Bytes that are worth a trade: each is two calls of the system in two processes."""

MOST_TILES = 4096
"""Of a slab. The kernel keeps a record of what has changed places, tile by tile at
worst: two tiers of four slabs have 32,768, of 65,530 a process (vm.max_map_count). And
whoever maps the slab next is told of all in one message, of 80 KiB then."""

Trade = tuple[int, int, int]
"""(there, behind, bytes): the pages behind are seen there from then on, and those from
there are seen behind."""


def tile_of(nbytes: int) -> int:
    """Bytes of the tiles that a slab of so many is traded in: a power of two."""
    tile = SMALLEST
    while tile * MOST_TILES < nbytes:
        tile *= 2
    return tile


def traded(
    fresh: list[tuple[int, int]],
    left: list[tuple[int, int]],
    enough: int,
    tile: int = SMALLEST,
) -> tuple[list[Trade], list[tuple[int, int]]]:
    """Tiles of `left` for those of `fresh`, until `enough` bytes are; and what is left
    then. Small ranges go first: they are of no use to anybody else."""
    trades: list[Trade] = []
    kept: list[tuple[int, int]] = []
    wanted = [part for part in (_whole(tile, *each) for each in fresh) if part]
    for start, end in sorted(left, key=lambda each: each[1] - each[0]):
        first, last = _whole(tile, start, end) or (end, end)
        at = first
        while wanted and enough > 0 and at < last:
            there, until = wanted.pop()
            nbytes = min(last - at, until - there, -(-enough // tile) * tile)
            trades.append((there, at, nbytes))
            enough -= nbytes
            at += nbytes
            if there + nbytes < until:
                wanted.append((there + nbytes, until))
        parts = ((start, first), (at, end)) if at > first else ((start, end),)
        kept += [part for part in parts if part[0] < part[1]]
    return trades, kept


def _whole(tile: int, start: int, end: int) -> tuple[int, int] | None:
    """The whole tiles of it, if any."""
    first, last = -(-start // tile) * tile, end // tile * tile
    return (first, last) if first < last else None
