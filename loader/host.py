"""The host tier: models that left the device keep their bytes in host memory.

Owns: those bytes, their own limit and their own order of leaving (least recently used
first). Must not: fetch, verify (the bytes were, when they came) or know the device's
budget. One event loop; the copies run in the loader's threads.

A model that came back leaves its copy here, first in line to go: while there is room,
its next eviction needs no copy at all; when there is none, it is the cheapest to lose.

Its memory may be somebody else's (`estate`): then it outlives this process, and the
next one finds every model where it lay, and looks at its digest before it is used.

With `--device cpu` the device is host memory already. The tier then only turns a load
into a copy (no fetch, no digest) for as many bytes again; it is off unless asked for.
"""

from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from blake3 import blake3

from loader.carrier import carrier_for
from loader.errors import ArtifactRefused, DeviceFull
from loader.estate import Estate, Left
from loader.memory import DeviceMemory, HostMemory, PinnedMemory, unpin
from loader.placing import Placed, place
from loader.slab import Block, rounded
from loader.slabs import Slabs
from loader.threads import to_its_end
from loader.tier import Tally, Tier


@dataclass(eq=False, slots=True)
class Kept:
    """A model's bytes as they lie in its block on the device."""

    block: Block
    placed: Placed
    users: int = 0
    """Loads that copy from it right now: it may not go."""
    doubted: bytes = b""
    """The digest that its bytes should have, until somebody has looked."""
    dropped: bool = False
    """It goes with its last user."""


class Copies(Protocol):
    """Where a load may copy verified bytes from."""

    def using(self, digest: str) -> AbstractContextManager[Kept | None]:
        """The bytes, which stay for as long as the block lasts; None if not here."""
        ...

    async def sound(self, digest: str, kept: Kept) -> bool:
        """True if its bytes are what they should be; asked by who is `using` it."""
        ...

    def buffer(self, kept: Kept) -> torch.Tensor:
        """Its bytes."""
        ...

    def returned(self, digest: str) -> None:
        """The model is on the device again."""
        ...


class HostTier:
    """Up to `capacity` bytes, by the digest of the weights file. `memory`: if it is not
    to be any of the host's. `carrier` may be changed."""

    def __init__(
        self,
        capacity: int,
        device: torch.device,
        executor: Executor,
        estate: Estate | None = None,
        memory: DeviceMemory | None = None,
    ) -> None:
        self.capacity = capacity
        self._pinned = device.type == "cuda"
        self._estate = estate
        if memory is None:
            memory = PinnedMemory() if self._pinned else HostMemory()
        self._slabs = Slabs(
            estate.bytes if estate else memory, lambda: capacity, whole=self._pinned
        )
        self._executor = executor
        self.carrier = carrier_for(device, executor)
        self._kept: OrderedDict[str, Kept] = OrderedDict()
        self._coming: set[str] = set()
        self._tally = Tally()
        self._open = True

    def reserve(self) -> None:
        """Get and pin the memory, which takes seconds: at start, in a thread."""
        if self._pinned:
            self._slabs.reserve()
        if self._estate is not None:
            for left in self._estate:
                if not self._inherit(left):
                    self._estate.went(left.identity)
            self._slabs.shed_holes()

    def _inherit(self, left: Left) -> bool:
        """Take over what the last life kept, if it can be what it says."""
        try:
            placed = place(left.header, left.size)
            block = self._slabs.restore((left.slab, left.start), left.nbytes)
        except (ArtifactRefused, DeviceFull):
            return False
        if block is None:
            return False
        if placed.placing.nbytes > block.nbytes:
            self._slabs.free(block)
            return False
        self._kept[left.identity] = Kept(block, placed, doubted=left.digest)
        return True

    def holds(self, digest: str) -> bool:
        """True if a load would be served from here."""
        return digest in self._kept

    @contextmanager
    def using(self, digest: str) -> Iterator[Kept | None]:
        """The bytes, which stay for as long as the block lasts; None if not here."""
        kept = self._kept.get(digest)
        if kept is None:
            self._tally.misses += 1
            yield None
            return
        self._tally.hits += 1
        kept.users += 1
        try:
            yield kept
        finally:
            kept.users -= 1
            if kept.dropped and not kept.users:
                self._slabs.free(kept.block)

    async def sound(self, digest: str, kept: Kept) -> bool:
        """True if its bytes are what they should be; asked by who is `using` it. What
        another process left is looked at once."""
        if not kept.doubted:
            return True
        wanted = kept.doubted  # another load may have looked when this one is done
        found = await to_its_end(self._executor, _digest, self.buffer(kept))
        if found == wanted:
            kept.doubted = b""
        elif not kept.dropped:
            self._tally.failures += 1
            self._forget(digest)
            kept.dropped = True
        return not kept.dropped

    def buffer(self, kept: Kept) -> torch.Tensor:
        """Its bytes."""
        return self._slabs.buffer(kept.block)

    def returned(self, digest: str) -> None:
        """The model is on the device again."""
        if digest in self._kept:
            self._kept.move_to_end(digest, last=False)

    async def keep(
        self, digest: str, size: int, placed: Placed, source: torch.Tensor
    ) -> None:
        """Copy a model that leaves the device, if there is room for it. `size`: of its
        file."""
        if digest in self._kept:
            self._kept.move_to_end(digest)
            return
        if not self._open or digest in self._coming:
            return
        block = self._room(source.numel())
        if block is None:
            return
        self._coming.add(digest)
        try:
            buffer = self._slabs.buffer(block)
            await self.carrier.carry(source, buffer)
            found = await self._left(buffer)
        except BaseException:
            self._tally.failures += 1
            self._slabs.free(block)
            raise
        finally:
            self._coming.discard(digest)
        self._kept[digest] = Kept(block, placed)
        if self._estate is not None:
            slab, start = self._slabs.place(block)
            self._estate.came(
                Left(digest, slab, start, source.numel(), size, placed.header, found)
            )

    async def _left(self, memory: torch.Tensor) -> bytes:
        """The digest, if somebody is to inherit."""
        if self._estate is None:
            return b""
        return await to_its_end(self._executor, _digest, memory)

    def _room(self, nbytes: int) -> Block | None:
        """A block, dropping whom it takes; None if those in use leave no room."""
        if rounded(nbytes) > self.capacity:
            return None
        idle = iter([digest for digest, kept in self._kept.items() if not kept.users])
        while (block := self._take(nbytes)) is None:
            digest = next(idle, None)
            if digest is None:
                return None
            self._drop(digest)
        return block

    def _take(self, nbytes: int) -> Block | None:
        if self._slabs.arena.held + rounded(nbytes) > self.capacity:
            return None
        try:
            return self._slabs.take(nbytes)
        except DeviceFull:
            return None

    def _drop(self, digest: str) -> None:
        self._slabs.free(self._forget(digest).block)
        self._tally.evictions += 1

    def _forget(self, digest: str) -> Kept:
        if self._estate is not None:
            self._estate.went(digest)
        return self._kept.pop(digest)

    def stop(self) -> None:
        """Keep nothing more: the server drains."""
        self._open = False

    def close(self) -> None:
        """No load is under way any more: all bytes go."""
        self.stop()
        for kept in self._kept.values():
            self._slabs.free(kept.block)
        self._kept.clear()
        if self._pinned:
            for slab in self._slabs.tensors():
                unpin(slab)
        self._slabs.close()
        if self._estate is not None:
            self._estate.close()

    def tier(self) -> Tier:
        """How it stands."""
        t = self._tally
        return Tier(
            "host", self.capacity, self._slabs.arena.held, len(self._kept),
            t.hits, t.misses, t.evictions, t.failures,
        )  # fmt: skip


def _digest(memory: torch.Tensor) -> bytes:
    return blake3(memory.numpy().data).digest()
