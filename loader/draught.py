"""A weights file drawn from the tap, by several threads, straight into its place.

Owns: its ranges, that it stops when nobody wants them any more, and that it does not
wait for a store that is not near after all. Must not: connect (loader/tap.py), or place
and verify (loader/pour.py).

Each range is one request, read chunk by chunk. Only for files that are verified by
chunks, and whose header is known from the last time.
"""

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

from loader.digest import FileRef
from loader.part import agreed
from loader.pour import Pouring
from loader.ranges import CHUNK
from loader.tap import SILENCE_S, Dry, Flow, Tap, Wish
from loader.threads import settled, together

PARALLEL = 2
"""Requests at once. From a SeaweedFS beside us one, two and three were as fast; behind
a switch one may not fill the wire."""

ALONE = 8 * CHUNK
"""Bytes up to which a second request costs more than it brings."""

LEAST = 1 << 20
"""Bytes in SILENCE_S that a near store gives at least; one that drips is none."""


@dataclass(slots=True)
class Share:
    """A range on its way: what of it is still to come, `[at, end)`."""

    flow: Flow
    at: int
    end: int


class Draught:
    """`pour` it once. `etag`: of the file when it was read last; then as the store
    says. `began_s`: seconds to the beginning of the quickest answer; `alone`: the only
    one."""

    def __init__(
        self, pouring: Pouring, tap: Tap, path: str, file: FileRef, etag: str | None
    ) -> None:
        self._pouring = pouring
        self._tap = tap
        self._path = path
        self._file = file
        self._known = etag
        self.etag = etag
        self.began_s = float("inf")
        self._shares = [Share(Flow(tap), *span) for span in spans(file.size)]
        self.alone = len(self._shares) == 1

    async def pour(self, executor: Executor) -> None:
        """All of it, to its end. Raises Dry, Changed, and what Pouring.drawn does."""
        url = await self._tap.signed(self._path)
        watch = asyncio.create_task(self._watch())
        try:
            await together([self._work(s, url, executor) for s in self._shares])
        finally:
            watch.cancel()
            for share in self._shares:
                share.flow.close()

    async def _watch(self) -> None:
        """A read that gives a byte now and then never is silent for long."""
        while True:
            before = self._came()
            await asyncio.sleep(SILENCE_S)
            if self._came() < before + LEAST:
                for share in self._shares:
                    share.flow.cut()

    def _came(self) -> int:
        return sum(share.flow.came for share in self._shares)

    async def _work(self, share: Share, url: str, executor: Executor) -> None:
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(executor, self._draw, share, url)
        try:
            await asyncio.shield(future)
        except asyncio.CancelledError:
            share.flow.cut()
            await settled(future)
            raise

    def _draw(self, share: Share, url: str) -> None:
        """In a thread: a range."""
        if not self._tap.runs:  # it ran dry while this waited for a thread
            raise Dry("rests")
        asked = time.monotonic()
        wish = Wish(url, share.at, share.end, self._file.size, self._known)
        etag = share.flow.open(wish)
        self.began_s = min(self.began_s, time.monotonic() - asked)
        self.etag = agreed(self.etag, etag)
        while share.at < share.end:
            end = min(share.at + CHUNK, share.end)
            self._pouring.drawn(share.flow.fill, share.at, end)
            share.at = end


def spans(size: int) -> Sequence[tuple[int, int]]:
    """The ranges of a file, `[start, end)`, each of whole chunks but for the last."""
    count = PARALLEL if size > ALONE else 1
    share = -(-size // (count * CHUNK)) * CHUNK
    return [(start, min(start + share, size)) for start in range(0, size, share)]
