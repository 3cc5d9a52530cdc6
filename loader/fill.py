"""Filling a block with a model's bytes, from the disk tier or the store.

    disk     read -> verify -> place; a file that is wrong goes, and the store is asked
    tap      draw -> verify -> place, from a near store; whatever is wrong with it, the
             store is asked as if there were none
    store    fetch -> verify -> place; the disk tier gets the bytes behind our back

Owns: these steps and their order. Must not: know graphs, budgets or leases, whose
memory it fills, or need torch: it also runs in a process that only loads
(runtime/porter/). Whatever `fill` raises, CancelledError too, no block is held then.
"""

import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from functools import partial
from pathlib import Path

from loader.chunks import FileChunks
from loader.digest import LARGEST
from loader.drawing import Drawing
from loader.errors import ArtifactRefused, StoreUnreachable
from loader.files import OpenFile
from loader.keeping import Keeping
from loader.placing import Placed, Placings, place
from loader.pool import Pool
from loader.pour import Pouring
from loader.quota import cores
from loader.ranges import CHUNK, Ranges
from loader.room import Filled, Room, Wanted
from loader.spool import Spool
from loader.store import Changed, Missing, Store
from loader.tap import Dry, Tap
from loader.threads import to_its_end
from loader.verify import Damaged

THREADS = max(1, min(8, cores() // 2))
"""Threads that read one file, if it may be verified by chunks: half of the cores at
most, for those who answer need the others."""

LARGE = 64 << 20
"""Bytes of a file from which on `large` helps: without, it keeps one core for long."""


class Filler:
    """One for a loader. One event loop. `threads`: see THREADS. `step`: see Pouring.
    `inline`: a small file that is in the page cache may keep the event loop, if it
    comes alone: a thread is woken some 0.1 ms late, and back. `tap`: of the
    store, and the threads that draw from it, which may all be kept waiting; it is the
    caller's to close, and each read of it asks for the interpreter. `large`: who helps
    with a large file, a thread of each."""

    def __init__(
        self,
        store: Store,
        placings: Placings,
        executor: Executor,
        pool: Pool,
        spool: Spool | None,
        *,
        threads: int = THREADS,
        step: int = LARGEST,
        inline: bool = False,
        tap: tuple[Tap, Executor] | None = None,
        large: Sequence[Executor] = (),
    ) -> None:
        self._store = store
        self._placings = placings
        self._executor = executor
        self._pool = pool
        self._spool = spool
        self._ranges = Ranges(store)
        self._threads = threads
        self._step = step
        self._inline = inline
        self._large = large
        self._drawing: Drawing | None = None
        if tap is not None:
            self._drawing = Drawing(*tap, self._ranges, placings, spool)
        self._under_way = 0

    @property
    def pid(self) -> int:
        """See Below."""
        return 0

    async def fill(self, spec: Wanted, room: Room) -> Filled:
        """See Below."""
        self._under_way += 1
        try:
            return await self._fill(spec, room)
        finally:
            self._under_way -= 1

    async def _fill(self, spec: Wanted, room: Room) -> Filled:
        filled = await self._from_disk(spec, room)
        if filled is not None:
            return filled
        try:
            return await self._from_store(spec, room)
        except (Changed, Damaged):
            self._ranges.forget(spec)
            self._placings.forget(spec.weights.identity)
        try:
            return await self._from_store(spec, room)
        except Changed:
            pass  # out there the error has no context, which holds the block's memory
        raise StoreUnreachable(
            f"model '{spec.name}' changed in the store while it was read"
        )

    async def _from_disk(self, spec: Wanted, room: Room) -> Filled | None:
        spool, file = self._spool, spec.weights
        if spool is None:
            return None
        with OpenFile() as opened:
            if not await to_its_end(
                self._executor, opened.open_spooled, spool, file.identity, file.size
            ):
                return None
            try:
                return await self._from_file(spec, room, opened, "disk")
            except (ArtifactRefused, Changed, OSError):
                # The disk's fault, or the file's: the store has the truth.
                await to_its_end(self._executor, spool.discard, file.identity)
                return None

    async def _from_file(
        self, spec: Wanted, room: Room, opened: OpenFile, tier: str
    ) -> Filled:
        async def feed(pouring: Pouring) -> None:
            chunks = FileChunks(pouring, opened.fd, spec.weights.size)
            large = self._large if spec.weights.size >= LARGE else ()
            await chunks.pour([*(self._executor,) * self._threads, *large])

        began = time.perf_counter()
        placed = await self._placed(spec, opened.header)
        return await self._pour(spec, room, placed, tier, began, feed)

    async def _from_store(self, spec: Wanted, room: Room) -> Filled:
        try:
            path = self._store.local(f"{spec.directory}/{spec.weights.name}")
        except Missing as error:
            raise ArtifactRefused(
                spec.weights.name, "is missing from the store"
            ) from error
        if path is not None and self._spool is None:
            return await self._from_folder(spec, room, path)
        return await self._from_tap(spec, room) or await self._from_afar(spec, room)

    async def _from_tap(self, spec: Wanted, room: Room) -> Filled | None:
        """None: it has to come another way, which can also tell what is wrong."""
        drawing = self._drawing
        if drawing is None:
            return None
        known = await drawing.place_of(spec)
        if known is None:
            return None
        began, feed = time.perf_counter(), partial(drawing.feed, spec)
        try:
            filled = await self._pour(spec, room, known, "store", began, feed)
        except Damaged:
            return None  # it is the file's, or one bit's
        except Dry as error:
            drawing.tap.rest(str(error))
            return None
        drawing.tap.ran()
        return filled

    async def _from_afar(self, spec: Wanted, room: Room) -> Filled:
        began = time.perf_counter()
        async with self._ranges.reading(spec) as reading:
            first = await reading.beginning()
            try:
                placed = await self._placed(spec, first)
            except ArtifactRefused as error:  # nobody has verified it yet
                raise Damaged(error.place, error.reason) from error
            keeping = Keeping(self._spool, spec.weights)

            async def feed(pouring: Pouring) -> None:
                async def sink(at: int, pieces: Sequence[memoryview]) -> None:
                    await to_its_end(self._executor, pouring.bytes, at, pieces)
                    keeping.came(at, pieces)

                await reading.pour(sink)

            filled = await self._pour(spec, room, placed, "store", began, feed)
        keeping.put()
        return filled

    async def _from_folder(self, spec: Wanted, room: Room, path: Path) -> Filled:
        known = self._placings.of(spec.weights.identity)
        with OpenFile() as opened:
            try:
                if known is not None and spec.weights.size <= CHUNK:
                    return await self._at_once(spec, room, known, path, opened)
                await to_its_end(self._executor, opened.open_local, path, spec.weights)
                return await self._from_file(spec, room, opened, "store")
            except OSError as error:
                raise StoreUnreachable("the model store could not be read") from error

    async def _at_once(
        self, spec: Wanted, room: Room, known: Placed, path: Path, opened: OpenFile
    ) -> Filled:
        """A small file that was here before: a thread is waited for only once."""

        def take(pouring: Pouring) -> None:
            opened.open_local(path, spec.weights, known.header)
            pouring.file(opened.fd, 0, spec.weights.size)

        async def feed(pouring: Pouring) -> None:
            if not (self._inline and self._under_way == 1):
                await to_its_end(self._executor, take, pouring)
                return
            opened.open_local(path, spec.weights, known.header)
            size = spec.weights.size
            try:
                pouring.file(opened.fd, 0, size, wait=False)
            except OSError:  # not cached, or a file system that cannot say
                await to_its_end(self._executor, pouring.file, opened.fd, 0, size)

        began = time.perf_counter()
        return await self._pour(spec, room, known, "store", began, feed)

    # -- the block --------------------------------------------------------------------

    async def _placed(self, spec: Wanted, first: bytes) -> Placed:
        """Where the file's bytes go. `first`: its beginning, header and all."""
        length = 8 + int.from_bytes(first[:8], "little")
        header, size = bytes(first[: min(length, len(first))]), spec.weights.size
        placed = self._placings.placed(header, size)
        if placed is None:
            placed = await to_its_end(self._executor, place, header, size)
            self._placings.learn(header, size, placed)
        return placed

    async def _pour(
        self,
        spec: Wanted,
        room: Room,
        placed: Placed,
        tier: str,
        began: float,
        feed: Callable[[Pouring], Awaitable[None]],
    ) -> Filled:
        block = await room.find(placed.placing.nbytes)
        try:
            landing = room.landing(block)
            pouring = Pouring(
                spec, placed, landing, room.direct, self._pool, self._step
            )
            room.placed(block, placed)
            await feed(pouring)
            pouring.close(time.perf_counter() - began)
        except BaseException:
            room.free(block)
            raise
        self._placings.verified(spec.weights.identity, placed)
        return Filled(block, placed, tier, pouring.seconds)
