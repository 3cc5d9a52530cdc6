"""A weights file, range by range, from a store that answers slowly and in any order.

Owns: how many requests are under way, of one model and of all, that a damaged range is
asked for again, and that no file is put together from two. Must not: know what the
bytes mean, or place them.

The manifest tells the size, so all ranges are asked for at once and a file of up to
CHUNK bytes is one request. A larger one that is verified by chunks comes in PARALLEL
ranges of up to SPAN bytes, or in fewer from a store that is near: a request costs the
store something, too (200 MB from a SeaweedFS beside us took 1.7 times a single stream
in 25 ranges, 1.35 times in 8). A file whose ETag is known from its last load is asked
for under it (If-Match); of another, the ranges' ETags must agree. Never obstore's
get_ranges: it merges neighbouring ranges into one stream (loading facts, 0.4).

Bytes go to their sink while more come. Ranges of a file that is verified by chunks go
in any order, several at once; others wait for those before them, in memory.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any

from cachetools import LRUCache

from loader.errors import ArtifactRefused, StoreUnreachable
from loader.header import LENGTH_BYTES
from loader.nearness import Nearness
from loader.part import Changed, agreed
from loader.room import Wanted
from loader.store import Missing, Store
from loader.threads import settled
from loader.verify import Damaged

CHUNK = 8 << 20
"""Bytes a range: one GET brings most small models whole (loading facts, 4d)."""

SPAN = 4 * CHUNK
"""Bytes of a range at most: what is behind a reset in it is asked for again."""

PARALLEL = 8
"""Ranges of one model under way at once."""

NEAR_PARALLEL, NEAR_SPAN = 3, 12 * CHUNK
"""The same two for a store that is near (loader/nearness.py)."""

PARALLEL_ALL = 32
"""Ranges of all models under way at once."""

Sink = Callable[[int, Sequence[memoryview]], Awaitable[None]]
"""Takes the bytes from an offset on; from the range's first on, if it is begun anew."""


class Ranges:
    """Reads weights files. One event loop."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._etags: LRUCache[tuple[str, str], str] = LRUCache(65536)
        self._slots = asyncio.Semaphore(PARALLEL_ALL)
        self.nearness = Nearness()

    def etag(self, spec: Wanted) -> str | None:
        """Of the file when it was read last."""
        return self._etags.get(_name(spec))

    def seen(self, spec: Wanted, etag: str | None) -> None:
        """The file was read, and has it."""
        if etag is not None:
            self._etags[_name(spec)] = etag

    def forget(self, spec: Wanted) -> None:
        """The file is another one than it was."""
        self._etags.pop(_name(spec), None)

    @asynccontextmanager
    async def reading(self, spec: Wanted) -> AsyncIterator["Reading"]:
        """The file, on its way as long as the block lasts."""
        if not spec.weights.size:
            raise ArtifactRefused(spec.weights.name, "is empty")
        known = self.etag(spec)
        reading = Reading(self._store, self._slots, spec, known, self.nearness)
        try:
            yield reading
        finally:
            await reading.close()
        self.seen(spec, reading.etag)

    async def a_byte(self, spec: Wanted) -> None:
        """The file's first, for the sake of an answer. Raises StoreUnreachable."""
        path = f"{spec.directory}/{spec.weights.name}"
        with suppress(Missing, Changed):  # whoever reads the file will say so
            part = await self._store.part(path, 0, 1, None)
            async with aclosing(part.pieces) as pieces:
                async for _ in pieces:
                    pass


class Reading:
    """One file on its way: `beginning`, then `pour`. `nearness`: the store's; is told
    how long each answer took to begin.

    Both raise Changed, ArtifactRefused, StoreUnreachable.
    """

    def __init__(
        self,
        store: Store,
        slots: asyncio.Semaphore,
        spec: Wanted,
        etag: str | None,
        nearness: Nearness,
    ) -> None:
        self._nearness = nearness
        self._store = store
        self._slots = slots
        self._spec = spec
        self._known = etag
        self.etag = etag
        """Of the file, as the store says; None if it does not."""
        self._beginning: asyncio.Future[bytes] = (
            asyncio.get_running_loop().create_future()
        )
        self._sink: Sink | None = None
        self._opened = self._before = asyncio.Event()
        near = nearness.near
        parallel, span = (NEAR_PARALLEL, NEAR_SPAN) if near else (PARALLEL, SPAN)
        share = -(-spec.weights.size // (parallel * CHUNK)) * CHUNK
        self._span = CHUNK if spec.weights.chunks is None else min(span, share)
        starts = range(0, spec.weights.size, self._span)
        self._starts = iter(starts)
        self._workers = [
            asyncio.create_task(self._work()) for _ in range(min(parallel, len(starts)))
        ]

    async def beginning(self) -> bytes:
        """The file up to the end of the header, or of its first range."""
        waited: list[asyncio.Future[Any]] = [self._beginning, *self._workers]
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        if not self._beginning.done():  # then a worker has failed
            await asyncio.gather(*self._workers)
        return self._beginning.result()

    async def pour(self, sink: Sink) -> None:
        """Give it every byte. Nothing is given to it any more when this returns."""
        self._sink = sink
        self._opened.set()
        try:
            await asyncio.gather(*self._workers)
        finally:
            await self.close()

    async def close(self) -> None:
        """Call off what is still under way."""
        for worker in self._workers:
            worker.cancel()
        for worker in self._workers:
            await settled(worker)
        self._beginning.cancel()

    async def _work(self) -> None:
        for start in self._starts:  # shared: each takes the next
            before, done = self._before, asyncio.Event()
            if self._spec.weights.chunks is None:
                self._before = done
            await self._right(start, before)
            done.set()

    async def _right(self, start: int, before: asyncio.Event) -> None:
        """A range; from a chunk that came damaged on it is asked for again, once."""
        end, asked = min(start + self._span, self._spec.weights.size), -1
        while True:
            try:
                await self._range(start, end, before)
                return
            except Damaged as error:
                refused = ArtifactRefused(error.place, error.reason)
                start = max(start, error.at)
            if start == asked:
                # Out here it has no context: its traceback holds the block's memory.
                raise refused
            asked = start

    async def _range(self, start: int, end: int, before: asyncio.Event) -> None:
        """Fetch a range and pour it, once it may be poured."""
        at, held = start, list[memoryview]()
        async with aclosing(self._fetch(start, end)) as pieces:
            async for piece in pieces:
                held.append(piece)
                if start == 0:
                    self._look(held, piece)
                if before.is_set():
                    at = await self._pour(at, held)
        came = at - start + sum(map(len, held))
        if came != end - start:
            raise StoreUnreachable(
                f"the model store sent {came} bytes of model '{self._spec.name}' "
                f"where {end - start} were asked for"
            )
        if start == 0:
            self._look(held, None)
        await before.wait()
        await self._pour(at, held)

    async def _pour(self, at: int, held: list[memoryview]) -> int:
        assert self._sink is not None
        pieces = tuple(held)
        held.clear()
        await self._sink(at, pieces)
        return at + sum(map(len, pieces))

    def _look(self, held: Sequence[memoryview], piece: memoryview | None) -> None:
        """Is the header there? `piece`: the one that came last, None if all did."""
        if self._beginning.done():
            return
        length = int.from_bytes(held[0][:LENGTH_BYTES], "little") if held else 0
        wanted, came = LENGTH_BYTES + length, sum(map(len, held))
        if piece is None or came >= wanted:
            most = min(wanted, came)
            self._beginning.set_result(b"".join(part[:most] for part in held)[:most])

    async def _fetch(self, start: int, end: int) -> AsyncGenerator[memoryview, None]:
        file = self._spec.weights
        path = f"{self._spec.directory}/{file.name}"
        async with self._slots:
            began = time.perf_counter()
            try:
                part = await self._store.part(path, start, end, self._known)
            except Missing as error:
                raise ArtifactRefused(file.name, "is missing from the store") from error
            alone = self._span >= file.size
            self._nearness.began(time.perf_counter() - began, alone)
            async with aclosing(part.pieces) as pieces:
                # What later ranges say of the whole is the store's affair: the digest
                # is ours.
                if start == 0 and part.size != file.size:
                    raise ArtifactRefused(
                        file.name,
                        f"has {part.size} bytes, model.json says {file.size}",
                    )
                self.etag = agreed(self.etag, part.etag)
                async for piece in pieces:
                    yield piece


def _name(spec: Wanted) -> tuple[str, str]:
    """Another content is another file, whatever its path."""
    return f"{spec.directory}/{spec.weights.name}", spec.weights.identity
