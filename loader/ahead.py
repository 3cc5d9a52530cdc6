"""Ahead: bytes that are thought to be wanted next, fetched and verified in host memory.

Owns: those bytes within a limit of their own, so that nothing a request brought leaves
for a guess, and what became of each guess: used, or dropped unused. Must not: guess
(runtime/prefetch.py), or move anything to the device. One event loop.

To a load it is one more place to copy from, asked before the host tier (which it stands
in for there). A copy that was used goes: the model is on the device now, and falls to
the host tier when it leaves.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from loader.errors import DeviceFull
from loader.host import HostTier, Kept
from loader.manifest import ModelSpec
from loader.memory import DeviceMemory, HostMemory, PinnedMemory, unpin
from loader.room import Below
from loader.slab import rounded
from loader.slab_room import SlabRoom
from loader.slabs import Slabs
from loader.tier import Tally, Tier
from loader.turns import ERRAND, Errand

TIER = "ahead"


@dataclass(eq=False, slots=True)
class Guess:
    """A copy that nobody has asked for yet, and until when it may be."""

    kept: Kept
    until: float


class Ahead:
    """Up to `capacity` bytes. `host`: the tier that it stands before. `memory`: if it
    is not to be any of the host's."""

    def __init__(
        self,
        capacity: int,
        device: torch.device,
        host: HostTier | None,
        timeout: float = 120.0,
        memory: DeviceMemory | None = None,
    ) -> None:
        self.capacity = capacity
        self._pinned = device.type == "cuda"
        if memory is None:
            memory = PinnedMemory() if self._pinned else HostMemory()
        self._slabs = Slabs(memory, lambda: capacity, whole=self._pinned)
        self._slabs.patience = 0  # what lies between stays; the next guess may fit
        self._host = host
        self._timeout = timeout
        self._guesses: OrderedDict[str, Guess] = OrderedDict()
        self._below: Below | None = None
        self._tally = Tally()

    def reserve(self) -> None:
        """Get and pin the memory, which takes seconds: at start, in a thread."""
        if self._pinned:
            self._slabs.reserve()

    def fills_from(self, below: Below) -> None:
        """Where its bytes come from: the tiers below, as a load's do."""
        self._below = below

    # -- as a load sees it: loader.host.Copies ----------------------------------------

    @contextmanager
    def using(self, digest: str) -> Iterator[Kept | None]:
        """See HostTier."""
        guess = self._guesses.get(digest)
        if guess is not None:
            guess.kept.users += 1
            try:
                yield guess.kept
            finally:
                guess.kept.users -= 1
        elif self._host is not None:
            with self._host.using(digest) as kept:
                yield kept
        else:
            yield None

    async def sound(self, digest: str, kept: Kept) -> bool:
        """See HostTier. A guess's bytes were verified when they came."""
        if digest in self._guesses or self._host is None:
            return True
        return await self._host.sound(digest, kept)

    def buffer(self, kept: Kept) -> torch.Tensor:
        """See HostTier."""
        mine = any(guess.kept is kept for guess in self._guesses.values())
        if mine or self._host is None:
            return self._slabs.buffer(kept.block)
        return self._host.buffer(kept)

    def returned(self, digest: str) -> None:
        """It is on the device: the guess was right."""
        guess = self._guesses.get(digest)
        if guess is None:
            if self._host is not None:
                self._host.returned(digest)
        elif not guess.kept.users:
            self._tally.hits += 1
            self._drop(digest)

    # -- as the prefetch sees it -------------------------------------------------------

    def holds(self, digest: str) -> bool:
        """True if a load would be served from here."""
        return digest in self._guesses

    def has_room(self, nbytes: int, now: float) -> bool:
        """True if so many bytes fit, once guesses that came to nothing have gone. One
        that may still come true is never pushed out by another."""
        for digest, guess in list(self._guesses.items()):
            if guess.until <= now and not guess.kept.users:
                self._tally.evictions += 1
                self._drop(digest)
        return self._slabs.arena.held + rounded(nbytes) <= self.capacity

    async def bring(self, spec: ModelSpec, errand: Errand, until: float) -> None:
        """Fetch and verify a model's bytes, behind whatever is urgent.

        Raises loader.errors.LoadFailed, TimeoutError, CancelledError; nothing is held
        then.
        """
        assert self._below is not None, "Nowhere to fetch from. This is a bug."
        ERRAND.set(errand)
        room = SlabRoom(self._slabs, spec.graph.sha256)
        try:
            async with asyncio.timeout(self._timeout):
                filled = await self._below.fill(spec, room)
        except DeviceFull:
            return  # in no one piece; the next ones to go will make one
        except BaseException as error:
            self._tally.failures += not isinstance(error, asyncio.CancelledError)
            raise
        kept = Kept(filled.block, filled.placed)
        self._guesses[spec.weights.identity] = Guess(kept, until)

    def tier(self) -> Tier:
        """How it stands: hits were used, evictions were in vain."""
        t = self._tally
        return Tier(
            TIER, self.capacity, self._slabs.arena.held, len(self._guesses),
            t.hits, t.misses, t.evictions, t.failures,
        )  # fmt: skip

    def close(self) -> None:
        """No load is under way any more: all bytes go."""
        for digest in list(self._guesses):
            self._drop(digest)
        if self._pinned:
            for slab in self._slabs.tensors():
                unpin(slab)
        self._slabs.close()

    def _drop(self, digest: str) -> None:
        self._slabs.free(self._guesses.pop(digest).kept.block)
