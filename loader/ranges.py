"""A weights file, range by range, from a store that answers slowly and in any order.

Owns: how many requests are under way, of one model and of all, and that no file is put
together from two. Must not: know what the bytes mean, or place them.

The manifest tells the size, so all ranges are asked for at once and a file of up to
CHUNK bytes is one request. A file whose ETag is known from its last load is asked for
under it (If-Match); of another, the ranges' ETags must agree. Never obstore's
get_ranges: it merges neighbouring ranges into one stream (loading facts, 0.4).
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator

from cachetools import LRUCache

from loader.errors import ArtifactRefused, StoreUnreachable
from loader.manifest import ModelSpec
from loader.store import Changed, Chunk, Missing, Store

CHUNK = 8 << 20
"""Bytes a range: one GET brings most small models whole (loading facts, 4d)."""

PARALLEL = 8
"""Ranges of one model under way at once."""

PARALLEL_ALL = 32
"""Ranges of all models under way at once."""


class Ranges:
    """Reads weights files. One event loop."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._etags: LRUCache[tuple[str, str], str] = LRUCache(65536)
        self._slots = asyncio.Semaphore(PARALLEL_ALL)

    def forget(self, spec: ModelSpec) -> None:
        """The file is another one than it was."""
        self._etags.pop(_name(spec), None)

    async def read(
        self, spec: ModelSpec
    ) -> AsyncGenerator[tuple[int, memoryview], None]:
        """(offset, bytes) of the file in order.

        Raises Changed, ArtifactRefused, StoreUnreachable. Close it: whatever is still
        under way is called off then.
        """
        if not spec.weights.size:
            raise ArtifactRefused(spec.weights.name, "is empty")
        loop = asyncio.get_running_loop()
        known = self._etags.get(_name(spec))
        starts = deque(range(0, spec.weights.size, CHUNK))
        window: deque[tuple[int, asyncio.Task[Chunk]]] = deque()
        agreed = known
        try:
            while starts or window:
                while starts and len(window) < PARALLEL:
                    at = starts.popleft()
                    fetch = self._range(spec, at, known)
                    window.append((at, loop.create_task(fetch)))
                start, task = window[0]
                chunk = await task
                window.popleft()
                agreed = _same(agreed, chunk.etag)
                yield start, memoryview(chunk.data)
        finally:
            for _, task in window:
                task.cancel()
            if window:
                await asyncio.gather(*(t for _, t in window), return_exceptions=True)
        if agreed is not None:
            self._etags[_name(spec)] = agreed

    async def _range(self, spec: ModelSpec, start: int, etag: str | None) -> Chunk:
        file = spec.weights
        end = min(start + CHUNK, file.size)
        async with self._slots:
            try:
                chunk = await self._store.chunk(
                    f"{spec.directory}/{file.name}", start, end, etag
                )
            except Missing as error:
                raise ArtifactRefused(file.name, "is missing from the store") from error
        # What later ranges say of the whole is the store's affair: the digest is ours.
        if start == 0 and chunk.size != file.size:
            raise ArtifactRefused(
                file.name, f"has {chunk.size} bytes, model.json says {file.size}"
            )
        if len(chunk.data) != end - start:
            raise StoreUnreachable(
                f"the model store sent {len(chunk.data)} bytes of model "
                f"'{spec.name}' where {end - start} were asked for"
            )
        return chunk


def _name(spec: ModelSpec) -> tuple[str, str]:
    """Another content is another file, whatever its path."""
    return f"{spec.directory}/{spec.weights.name}", spec.weights.sha256


def _same(agreed: str | None, etag: str | None) -> str | None:
    if agreed is not None and etag is not None and etag != agreed:
        raise Changed
    return agreed if etag is None else etag
