"""Filling a block with a model's bytes, from the nearest tier that has them.

    host     one copy, already verified
    disk     read -> verify -> place; a file that is wrong goes, and the store is asked
    store    fetch -> verify -> place; the disk tier gets the bytes behind our back

Owns: the order of the tiers and of these steps. Must not: know graphs, budgets or
leases. Whatever `fill` raises, CancelledError too, no block is held when it does.
"""

import os
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from pathlib import Path

from loader.arena import Block
from loader.errors import ArtifactRefused, StoreUnreachable
from loader.files import OpenFile
from loader.host import Copies
from loader.manifest import ModelSpec
from loader.memory import carry
from loader.model import Filled
from loader.pool import Pool
from loader.pour import Pouring
from loader.ranges import CHUNK, Ranges
from loader.slabs import Slabs
from loader.spool import Spool
from loader.store import Changed, Missing, Store
from loader.threads import to_its_end, together
from loader.verify import Damaged
from loader.weights import Placed, Plans, place

THREADS = max(1, min(4, (os.cpu_count() or 1) // 2))
"""Threads that read one file, if it may be verified by chunks: half of the cores at
most. Two threads of one core hash a tenth more than one (measured), and those who
answer need the other."""

Kept = dict[int, list[memoryview]]
"""The pieces of each range, by where it starts."""


class Filler:
    """One for a loader. One event loop."""

    def __init__(
        self,
        store: Store,
        slabs: Slabs,
        plans: Plans,
        executor: Executor,
        pool: Pool | None,
        host: Copies | None,
        spool: Spool | None,
    ) -> None:
        self._store = store
        self._slabs = slabs
        self._plans = plans
        self._executor = executor
        self._pool = pool or Pool(4, slabs.memory.device)
        self._host = host
        self._spool = spool
        self._ranges = Ranges(store)

    async def fill(self, spec: ModelSpec) -> Filled:
        """A block with the model's bytes in it, from the nearest tier."""
        filled = await self._from_host(spec) or await self._from_disk(spec)
        if filled is not None:
            return filled
        try:
            return await self._from_store(spec)
        except (Changed, Damaged):
            self._ranges.forget(spec)
            self._plans.forget(spec.weights.identity)
        try:
            return await self._from_store(spec)
        except Changed:
            pass  # out there the error has no context, which holds the block's memory
        raise StoreUnreachable(
            f"model '{spec.name}' changed in the store while it was read"
        )

    async def _from_host(self, spec: ModelSpec) -> Filled | None:
        if self._host is None:
            return None
        began, digest = time.perf_counter(), spec.weights.identity
        with self._host.using(digest) as kept:
            if kept is None or kept.placed.layout.file_size != spec.weights.size:
                return None  # a manifest that lies of the size was booked by its lie
            if not await self._host.sound(digest, kept):
                return None
            source = self._host.buffer(kept)
            block = await self._room(spec, source.numel())
            try:
                target = self._slabs.buffer(block)
                await to_its_end(self._executor, carry, source, target)
            except BaseException:
                self._slabs.free(block)
                raise
        self._host.returned(digest)
        seconds = {"copy": time.perf_counter() - began}
        return Filled(block, kept.placed, "host", seconds)

    async def _from_disk(self, spec: ModelSpec) -> Filled | None:
        spool, file = self._spool, spec.weights
        if spool is None:
            return None
        with OpenFile() as opened:
            if not await to_its_end(
                self._executor, opened.open_spooled, spool, file.identity, file.size
            ):
                return None
            try:
                return await self._from_file(spec, opened, "disk")
            except (ArtifactRefused, Changed, OSError):
                # The disk's fault, or the file's: the store has the truth.
                await to_its_end(self._executor, spool.discard, file.identity)
                return None

    async def _from_file(self, spec: ModelSpec, opened: OpenFile, tier: str) -> Filled:
        size = spec.weights.size
        starts = range(0, size, CHUNK)

        async def feed(pouring: Pouring) -> None:
            left = iter(starts)

            async def work() -> None:
                for start in left:  # shared: each takes the next
                    end = min(start + CHUNK, size)
                    await to_its_end(
                        self._executor, pouring.file, opened.fd, start, end
                    )

            threads = 1 if pouring.ordered else min(THREADS, len(starts))
            await together([work() for _ in range(threads)])

        began = time.perf_counter()
        placed = await self._placed(spec, opened.header)
        return await self._pour(spec, placed, tier, began, feed)

    async def _from_store(self, spec: ModelSpec) -> Filled:
        try:
            path = self._store.local(f"{spec.directory}/{spec.weights.name}")
        except Missing as error:
            raise ArtifactRefused(
                spec.weights.name, "is missing from the store"
            ) from error
        if path is not None and self._spool is None:
            return await self._from_folder(spec, path)
        began = time.perf_counter()
        async with self._ranges.reading(spec) as reading:
            first = await reading.beginning()
            try:
                placed = await self._placed(spec, first)
            except ArtifactRefused as error:  # nobody has verified it yet
                raise Damaged(error.place, error.reason) from error
            kept = self._keeping(spec)

            async def feed(pouring: Pouring) -> None:
                async def sink(at: int, pieces: Sequence[memoryview]) -> None:
                    await to_its_end(self._executor, pouring.bytes, at, pieces)
                    if kept is not None:
                        keep(kept, at, pieces)

                await reading.pour(sink)

            filled = await self._pour(spec, placed, "store", began, feed)
        self._keep(spec, kept)
        return filled

    async def _from_folder(self, spec: ModelSpec, path: Path) -> Filled:
        known = self._plans.of(spec.weights.identity)
        with OpenFile() as opened:
            try:
                if known is not None and spec.weights.size <= CHUNK:
                    return await self._at_once(spec, known, path, opened)
                await to_its_end(self._executor, opened.open_local, path, spec.weights)
                return await self._from_file(spec, opened, "store")
            except OSError as error:
                raise StoreUnreachable("the model store could not be read") from error

    async def _at_once(
        self, spec: ModelSpec, known: Placed, path: Path, opened: OpenFile
    ) -> Filled:
        """A small file that was here before: a thread is waited for only once."""

        def take(pouring: Pouring) -> None:
            opened.open_local(path, spec.weights, known.header)
            pouring.file(opened.fd, 0, spec.weights.size)

        async def feed(pouring: Pouring) -> None:
            await to_its_end(self._executor, take, pouring)

        return await self._pour(spec, known, "store", time.perf_counter(), feed)

    def _keeping(self, spec: ModelSpec) -> Kept | None:
        """Where the file's bytes gather for the disk tier, if that wants them."""
        file = spec.weights
        if self._spool is None or not self._spool.wants(file.identity, file.size):
            return None
        return {}

    def _keep(self, spec: ModelSpec, kept: Kept | None) -> None:
        """Asked again: all loads that run at once were told that there is room."""
        file = spec.weights
        if self._spool is None or kept is None:
            return
        if self._spool.wants(file.identity, file.size):
            parts = [piece for start in sorted(kept) for piece in kept[start]]
            self._spool.put(file.identity, parts)

    # -- the block --------------------------------------------------------------------

    async def _placed(self, spec: ModelSpec, first: bytes) -> Placed:
        """Where the file's bytes go. `first`: its beginning, header and all."""
        length = 8 + int.from_bytes(first[:8], "little")
        header, size = bytes(first[: min(length, len(first))]), spec.weights.size
        placed = self._plans.placed(header, size)
        if placed is None:
            placed = await to_its_end(self._executor, place, header, size)
            self._plans.learn(header, size, placed)
        return placed

    async def _pour(
        self,
        spec: ModelSpec,
        placed: Placed,
        tier: str,
        began: float,
        feed: Callable[[Pouring], Awaitable[None]],
    ) -> Filled:
        block = await self._room(spec, placed.placing.nbytes)
        try:
            buffer = self._slabs.buffer(block)
            pouring = Pouring(
                spec, placed, buffer, self._slabs.memory.direct, self._pool
            )
            await feed(pouring)
            pouring.close(time.perf_counter() - began)
        except BaseException:
            self._slabs.free(block)
            raise
        self._plans.verified(spec.weights.identity, placed)
        return Filled(block, placed, tier, pouring.seconds)

    async def _room(self, spec: ModelSpec, nbytes: int) -> Block:
        return await self._slabs.find(nbytes, spec.graph.sha256)


def keep(kept: Kept, at: int, pieces: Sequence[memoryview]) -> None:
    """Pieces that were poured. A range that begins anew was damaged before.

    None at all, which is how a full range ends, are no beginning of the next one.
    """
    if not pieces:
        return
    start = at - at % CHUNK
    if at == start:
        kept[start] = []
    kept[start] += pieces
