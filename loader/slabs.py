"""The arena in memory: blocks that are real bytes of a device.

Owns: the tensors behind the slabs, and carrying out the moves of a compaction. Must
not: know models; it tells `moved` which block lives elsewhere now. One event loop.

A move runs on the event loop itself, one block at a time: nobody can take a lease on a
model while its bytes move, and no lock is needed to say so. On a GPU that is some
0.1 ms for 200 MB, in host memory some 20 ms; and only where fragmentation, not the
budget, would refuse a load.

Memory is given back in a thread (loader/shedding.py). Until that is done so much more
than the capacity is touched: at most a part of it (PENDING), or as much as one load
brings.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence

import structlog
import torch

from loader import compaction
from loader.arena import Arena
from loader.compaction import MayMove, Move
from loader.errors import DeviceFull
from loader.memory import DeviceMemory
from loader.shedding import Shedding
from loader.slab import LARGEST_GRANULE, Block, Slab, rounded

log = structlog.get_logger()

PENDING = 16
"""A part of the capacity that may be on its way back, beside what a load brings; then
loads wait for it."""

ATTEMPTS = 4
"""Plans that are carried out for one load without a look at who came and went."""

PATIENCE_S = 10.0
"""How long a load waits for its room to come into one piece. Its bytes are there; those
in between are being loaded, kept, or run just now, and none of these take so long."""

LOOK_S = 0.01
"""Between two looks, if no block comes or goes: nobody tells us that a lease ended."""

REST = 10
"""Times as long as a look took nobody looks again, whatever came or went: with a
thousand blocks one holds the event loop up for 5 ms (compaction.plan), and as many
loads may wait as there are at a time."""

REST_S = 0.1
"""And no longer: most of a look may have been moving, or waiting for memory to go."""


class Slabs:
    """Blocks of device memory within `capacity()` bytes."""

    def __init__(
        self,
        memory: DeviceMemory,
        capacity: Callable[[], int],
        moved: Callable[[Block], None] = lambda block: None,
        may_move: MayMove = lambda block: False,
        whole: bool = False,
    ) -> None:
        self.memory = memory
        self.arena = Arena(capacity, memory.lazy, whole)
        self._trades = memory.lazy
        self._moved = moved
        self._may_move = may_move
        self._tensors: dict[Slab, torch.Tensor] = {}
        self._views: dict[Block, torch.Tensor] = {}
        self._compacting = asyncio.Lock()
        self._change = asyncio.Event()
        self.patience = PATIENCE_S
        self._shedding = Shedding(memory.shed, self.arena.shed_done)

    def take(self, nbytes: int, group: str = "") -> Block | None:
        """A block, from a hole or a new slab; None if the arena has no room for it in
        one piece. Raises DeviceFull if the device has less than the capacity says."""
        self._shedding.look()
        block = self.arena.take(nbytes, group)
        if block is None:
            size, in_the_way = self.arena.growth(nbytes)
            if not size:
                return None
            self._drop(in_the_way)
            self._grow(size)
            block = self.arena.take(nbytes, group)
        if block is not None:
            self._exchange(block)
        self._shed()  # what the block will touch, others must leave
        return block

    def _grow(self, size: int) -> None:
        tensor = self.memory.slab(size)
        self._tensors[self.arena.add(size)] = tensor

    def _exchange(self, block: Block) -> None:
        """Touched pages that nobody uses instead of new ones: those would have to be
        cleared, and as many be given back."""
        assert block.slab is not None
        trades = self.arena.trades_for(block) if self._trades else []
        if not trades:
            return
        made = self.memory.swap(self._tensors[block.slab], trades)
        if made == len(trades):
            return
        self._trades = False
        self.arena.keep(block.slab, trades[made:])
        if made:
            log.warning("pages do not change places any more", why="map count")

    def restore(self, place: tuple[int, int], nbytes: int) -> Block | None:
        """A block at (slab, start) of another life; None if that cannot be."""
        number, start = place
        while number >= len(self.arena.slabs):
            size = self.arena.growth(1)[0]
            if not size:
                return None
            self._grow(size)
        return self.arena.restore(self.arena.slabs[number], start, nbytes)

    def place(self, block: Block) -> tuple[int, int]:
        """(slab, start), for `restore`."""
        assert block.slab is not None
        return self.arena.slabs.index(block.slab), block.start

    def shed_holes(self) -> None:
        """Give back what nobody has a block in: another life may have touched it."""
        for slab in self.arena.slabs:
            for start, end in slab.holes():
                self.memory.shed(self._tensors[slab][start:end])

    def reserve(self) -> None:
        """Make every slab the capacity has room for."""
        while True:
            size, in_the_way = self.arena.growth(1)
            # Those in the way are what was reserved just now: there is no room left.
            if in_the_way or size < LARGEST_GRANULE:
                return
            self._grow(size)

    def tensors(self) -> Sequence[torch.Tensor]:
        """The slabs themselves."""
        return list(self._tensors.values())

    async def find(self, nbytes: int, group: str) -> Block:
        """A block, moving others aside if it takes that. Raises DeviceFull."""
        bound = max(rounded(nbytes), self.arena.capacity() // PENDING)
        await self._shedding.until(bound)
        block = self.take(nbytes, group)
        if block is not None:
            return block
        until = time.perf_counter() + self.patience
        while True:
            async with self._compacting:
                began = time.perf_counter()
                block = await self._in_one_piece(nbytes, group)
                ended = time.perf_counter()
            if block is not None:
                return block
            if ended >= until:
                raise DeviceFull("the device has no room in one piece for this model")
            await self._changed(min(REST * (ended - began), REST_S))

    async def _in_one_piece(self, nbytes: int, group: str) -> Block | None:
        """A block, moving aside who may be moved just now."""
        for _ in range(ATTEMPTS):
            await self._shedding.until(0)
            block = self.take(nbytes, group)
            if block is not None:
                return block
            moves = compaction.plan(self.arena.slabs, rounded(nbytes), self._may_move)
            if moves is None:
                return None
            await self._carry_out(moves)
        await self._shedding.until(0)
        return self.take(nbytes, group)

    async def _changed(self, rest: float) -> None:
        """A block came to rest or went, or a while has passed; after a rest."""
        self._change.clear()
        await asyncio.sleep(rest)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOOK_S):
                await self._change.wait()

    def buffer(self, block: Block) -> torch.Tensor:
        """The block's bytes. Valid until it is freed or moved."""
        view = self._views.get(block)  # a load asks four times, a narrow takes 20 us
        if view is None or len(view) != block.nbytes:  # trimmed meanwhile
            view = self._views[block] = self._narrow(block)
        return view

    def _narrow(self, block: Block) -> torch.Tensor:
        assert block.slab is not None
        return self._tensors[block.slab].narrow(0, block.start, block.nbytes)

    def free(self, block: Block) -> None:
        """Nobody reads or writes the block any more."""
        self._views.pop(block, None)
        self.arena.free(block)
        self.shrink()
        self._change.set()

    def at_rest(self) -> None:
        """A block's bytes are all there: from now on it may be moved."""
        self._change.set()

    def shrink(self) -> None:
        """Give back what is more than the capacity and empty, or can be emptied."""
        self._drop(self.arena.surplus())
        solid = not self.arena.lazy and len(self._tensors) > 1
        if solid and self.arena.reserved > self.arena.capacity():
            moves = compaction.evacuation(self.arena.slabs, self._may_move)
            for move in moves or ():
                self._move(move)
            self._drop(self.arena.surplus())
        self._shed()

    def _shed(self) -> None:
        for block in self.arena.shed() if self.arena.lazy else ():
            self._shedding.begin(block, self._narrow(block))

    def close(self) -> None:
        """All that is empty goes."""
        self._shedding.over()
        self._drop([slab for slab in self.arena.slabs if not slab.blocks])

    def _drop(self, slabs: Sequence[Slab]) -> None:
        for slab in slabs:
            self.arena.drop(slab)
            del self._tensors[slab]
        if slabs:
            self.memory.gave_back()

    async def _carry_out(self, moves: Sequence[Move]) -> None:
        """As far as the plan still holds; nothing awaits after the last move."""
        self.arena.compactions += 1
        for index, move in enumerate(moves):
            if index:
                await asyncio.sleep(0)
            if not self._possible(move):
                return
            self._move(move)
        log.debug("compacted", moved=len(moves), slabs=len(self._tensors))

    def _move(self, move: Move) -> None:
        source, there = self.buffer(move.block), self._tensors[move.slab]
        self.memory.move(source, there.narrow(0, move.start, move.block.nbytes))
        self.arena.move(move.block, move.slab, move.start)
        self._views.pop(move.block, None)
        self._moved(move.block)

    def _possible(self, move: Move) -> bool:
        block = move.block
        return (
            block.slab is not None
            and move.slab in self._tensors
            and self._may_move(block)
            and move.slab.is_free(move.start, move.start + block.nbytes, block)
        )
