"""Filling a block from the nearest place that has a model's bytes.

    host     one copy, already verified (loader/host.py, loader/ahead.py)
    below    the disk tier and the store (loader/fill.py)

Owns: that order, and the copy. Must not: know graphs, budgets or leases. Whatever
`fill` raises, CancelledError too, no block is held when it does.
"""

import time
from collections.abc import Callable

from loader.carrier import Carrier
from loader.host import Copies
from loader.manifest import ModelSpec
from loader.placing import Placed
from loader.room import Below, Filled
from loader.slab import Block
from loader.slab_room import SlabRoom
from loader.slabs import Slabs


class Warm:
    """One for a loader. One event loop."""

    def __init__(
        self, slabs: Slabs, carrier: Carrier, copies: Copies | None, below: Below
    ) -> None:
        self._slabs = slabs
        self._carrier = carrier
        self._copies = copies
        self._below = below

    async def fill(
        self, spec: ModelSpec, told: Callable[[Block, Placed], None] | None = None
    ) -> Filled:
        """A block with the model's bytes in it. `told`: see SlabRoom. Raises one of
        loader.errors."""
        room = SlabRoom(self._slabs, spec.graph.sha256, told)
        return await self._copied(spec, room) or await self._below.fill(spec, room)

    async def _copied(self, spec: ModelSpec, room: SlabRoom) -> Filled | None:
        if self._copies is None:
            return None
        began, digest = time.perf_counter(), spec.weights.identity
        with self._copies.using(digest) as kept:
            if kept is None or kept.placed.layout.file_size != spec.weights.size:
                return None  # a manifest that lies of the size was booked by its lie
            if not await self._copies.sound(digest, kept):
                return None
            source = self._copies.buffer(kept)
            block = await room.find(source.numel())
            try:
                copied = self._carrier.carry(source, self._slabs.buffer(block))
                try:
                    room.placed(block, kept.placed)
                finally:
                    await copied
            except BaseException:
                room.free(block)
                raise
        self._copies.returned(digest)
        seconds = {"copy": time.perf_counter() - began}
        return Filled(block, kept.placed, "host", seconds)
