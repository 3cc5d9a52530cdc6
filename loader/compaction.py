"""Compaction: which blocks to move so that one hole becomes large enough.

Owns: the plan. Must not: move anything, or keep state.

    slide    blocks between neighbouring holes of one slab move down; the holes become
             one. Of all such runs, the one that moves the fewest bytes.
    lend     where a slab alone has too little, some of its blocks move into holes of
             other slabs first.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from heapq import nlargest

from loader.slab import Block, Slab

HOLES = 64
"""Of other slabs, the largest: lending is worked out on the event loop."""
TRIES = 16
"""Slides looked for after so many blocks more than should be needed were lent."""


@dataclass(frozen=True, slots=True)
class Move:
    """`block` goes to `start` of `slab`. May overlap where it lies."""

    block: Block
    slab: Slab
    start: int


@dataclass(slots=True)
class _Hole:
    slab: Slab
    start: int
    end: int

    def size(self) -> int:
        return self.end - self.start


MayMove = Callable[[Block], bool]


def plan(slabs: Sequence[Slab], need: int, may_move: MayMove) -> list[Move] | None:
    """The moves, in order, that open a hole of `need` bytes; None if none would do."""
    plans = [_slide(slab, slab.blocks, need, may_move) for slab in slabs]
    found = _cheapest(plans)
    if found is None:
        found = _cheapest([_lend(slab, slabs, need, may_move) for slab in slabs])
    return found


def evacuation(slabs: Sequence[Slab], may_move: MayMove) -> list[Move] | None:
    """The moves that empty the slab with the least in it; None if it cannot be."""
    slab = min(slabs, key=lambda s: sum(block.nbytes for block in s.blocks))
    holes, moves = _holes(slabs, slab), []
    for block in sorted(slab.blocks, key=lambda b: -b.nbytes):
        move = _into(holes, block) if may_move(block) else None
        if move is None:
            return None
        moves.append(move)
    return moves


def _holes(slabs: Sequence[Slab], but: Slab) -> list[_Hole]:
    """The largest holes of all slabs but one."""
    holes = [
        _Hole(slab, start, end)
        for slab in slabs
        if slab is not but
        for start, end in slab.holes()
    ]
    return nlargest(HOLES, holes, key=_Hole.size)


def _into(holes: Sequence[_Hole], block: Block) -> Move | None:
    """Into the smallest hole that takes it; the hole shrinks."""
    fits = [hole for hole in holes if hole.size() >= block.nbytes]
    if not fits:
        return None
    hole = min(fits, key=_Hole.size)
    move = Move(block, hole.slab, hole.start)
    hole.start += block.nbytes
    return move


def _cheapest(plans: Sequence[list[Move] | None]) -> list[Move] | None:
    possible = [moves for moves in plans if moves is not None]
    return min(possible, key=_cost, default=None)


def _cost(moves: Sequence[Move]) -> int:
    return sum(move.block.nbytes for move in moves)


def _slide(
    slab: Slab, blocks: Sequence[Block], need: int, may_move: MayMove
) -> list[Move] | None:
    """The cheapest run of `blocks` (the slab's, less some) that may slide together."""
    run = _cheapest_run(slab, blocks, need, may_move)
    if run is None:
        return None
    first, last = run
    at = blocks[first - 1].end if first else 0
    moves = []
    for block in blocks[first:last]:
        if block.start != at:
            moves.append(Move(block, slab, at))
        at += block.nbytes
    return moves


def _cheapest_run(
    slab: Slab, blocks: Sequence[Block], need: int, may_move: MayMove
) -> tuple[int, int] | None:
    """`blocks[first:last]`, between gaps that are large enough together."""
    gaps = _gaps(slab, blocks)
    best: tuple[int, int, int] | None = None
    first, free, cost = 0, 0, 0
    for last, gap in enumerate(gaps):
        if last and not may_move(blocks[last - 1]):
            first, free, cost = last, 0, 0
        elif last:
            cost += blocks[last - 1].nbytes
        free += gap
        while first < last and free - gaps[first] >= need:
            free -= gaps[first]
            cost -= blocks[first].nbytes
            first += 1
        if free >= need and (best is None or cost < best[0]):
            best = cost, first, last
    return None if best is None else best[1:]


def _gaps(slab: Slab, blocks: Sequence[Block]) -> list[int]:
    """The free bytes before each block, and after the last."""
    starts = [block.start for block in blocks] + [slab.nbytes]
    ends = [0] + [block.end for block in blocks]
    return [start - end for start, end in zip(starts, ends, strict=True)]


def _lend(
    slab: Slab, slabs: Sequence[Slab], need: int, may_move: MayMove
) -> list[Move] | None:
    """Blocks of `slab` into the holes of the others, then slide what stays."""
    if slab.nbytes < need:
        return None
    holes = _holes(slabs, slab)
    stay, moves = list(slab.blocks), list[Move]()
    free, tries = sum(_gaps(slab, stay)), 0
    for block in sorted(filter(may_move, slab.blocks), key=lambda b: -b.nbytes):
        move = _into(holes, block)
        if move is None:
            continue
        moves.append(move)
        stay.remove(block)
        free += block.nbytes
        if free < need:
            continue
        rest = _slide(slab, stay, need, may_move)
        if rest is not None:
            return moves + rest
        tries += 1
        if tries == TRIES:
            break
    return None
