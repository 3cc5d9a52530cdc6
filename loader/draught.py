"""A weights file drawn from the tap, by several threads, straight into its place.

Owns: its ranges, and that it stops when nobody wants them any more. Must not: connect
(loader/tap.py), or place and verify (loader/pour.py).

Each range is one request, read chunk by chunk. Only for files that are verified by
chunks, and whose header is known from the last time.
"""

import asyncio
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

from loader.chunks import RUN
from loader.digest import FileRef
from loader.pour import Pouring
from loader.ranges import CHUNK
from loader.store import Changed
from loader.tap import Flow, Tap, Wish
from loader.threads import settled, together
from loader.turns import ERRAND

PARALLEL = 2
"""Requests at once: there is a core for each, and the store wants some as well."""

ALONE = 2 * CHUNK
"""Bytes up to which a second request costs more than it brings."""


@dataclass(slots=True)
class Share:
    """A range on its way: what of it is still to come, `[at, end)`."""

    flow: Flow
    at: int
    end: int
    begun: bool = False


class Draught:
    """`pour` it once. `etag`: of the file when it was read last; then as the store
    says."""

    def __init__(
        self, pouring: Pouring, tap: Tap, path: str, file: FileRef, etag: str | None
    ) -> None:
        self._pouring = pouring
        self._path = path
        self._file = file
        self._known = etag
        self.etag = etag
        self._shares = [Share(Flow(tap), *span) for span in spans(file.size)]
        errand = ERRAND.get()
        self._run = RUN if errand is None or errand.urgent else 1

    async def pour(self, executor: Executor) -> None:
        """All of it, to its end. Raises Dry, Changed, and what Pouring.drawn does."""
        try:
            await together([self._work(share, executor) for share in self._shares])
        finally:
            for share in self._shares:
                share.flow.close()

    async def _work(self, share: Share, executor: Executor) -> None:
        loop = asyncio.get_running_loop()
        while share.at < share.end:
            future = loop.run_in_executor(executor, self._some, share)
            try:
                await asyncio.shield(future)
            except asyncio.CancelledError:
                share.flow.cut()
                await settled(future)
                raise

    def _some(self, share: Share) -> None:
        """In a thread: a run of chunks."""
        if not share.begun:
            share.begun = True
            at, end, size = share.at, share.end, self._file.size
            self._agree(share.flow.open(Wish(self._path, at, end, size, self._known)))
        for _ in range(self._run):
            if share.at < share.end:
                end = min(share.at + CHUNK, share.end)
                self._pouring.drawn(share.flow.fill, share.at, end)
                share.at = end

    def _agree(self, etag: str | None) -> None:
        """No file is put together from two. (Two threads at once would both be right,
        or the digest of a chunk is not.)"""
        if self.etag is not None and etag is not None and etag != self.etag:
            raise Changed
        self.etag = self.etag if etag is None else etag


def spans(size: int) -> Sequence[tuple[int, int]]:
    """The ranges of a file, `[start, end)`, each of whole chunks but for the last."""
    count = PARALLEL if size > ALONE else 1
    share = -(-size // (count * CHUNK)) * CHUNK
    return [(start, min(start + share, size)) for start in range(0, size, share)]
