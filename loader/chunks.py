"""An open file, chunk by chunk, by several threads.

Owns: which thread takes which chunk, and that it stops between two when nobody wants
them any more. Must not: read or verify one (loader/pour.py).
"""

import asyncio
from collections.abc import Sequence
from concurrent.futures import Executor

from loader.pour import Pouring
from loader.ranges import CHUNK
from loader.threads import settled, together
from loader.turns import ERRAND

RUN = 4
"""Chunks that a thread takes before it comes back. Waking one takes 0.1 ms, and the
kernel may first put it where another is busy: of 200 MB read and hashed in 31 ms by two
threads, 15 were such waits. Those that are not urgent come back after each."""


class FileChunks:
    """`pour` it once."""

    def __init__(self, pouring: Pouring, fd: int, size: int) -> None:
        self._pouring = pouring
        self._fd = fd
        self._size = size
        self._starts = range(0, size, CHUNK)
        self._left = iter(self._starts)
        self._stopped = False
        errand = ERRAND.get()
        self._run = RUN if errand is None or errand.urgent else 1

    async def pour(self, hands: Sequence[Executor]) -> None:
        """All of it, to its end, by a thread of each of these at most. Raises what
        Pouring.file does."""
        count = 1 if self._pouring.ordered else min(len(hands), len(self._starts))
        await together([self._work(executor) for executor in hands[:count]])

    async def _work(self, executor: Executor) -> None:
        loop, more = asyncio.get_running_loop(), True
        while more:
            future = loop.run_in_executor(executor, self._some)
            try:
                more = await asyncio.shield(future)
            except asyncio.CancelledError:
                self._stopped = True
                await settled(future)
                raise

    def _some(self) -> bool:
        """In a thread: a run of chunks; True if there may be more."""
        for _ in range(self._run):
            start = None if self._stopped else next(self._left, None)
            if start is None:
                return False
            end = min(start + CHUNK, self._size)
            self._pouring.file(self._fd, start, end)
        return True
