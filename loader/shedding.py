"""Memory on its way back to the kernel, behind our back.

Owns: the thread that gives it back, and who waits until it has: 12 MB can take as many
milliseconds. Until then nobody gets a block there. Must not: choose what goes
(loader/arena.py). One event loop.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from loader.slab import Block
from loader.threads import stand_back


class Shedding:
    """`shed` gives a tensor's pages back, in a thread; `done` is told of its block on
    the event loop, by whoever looks."""

    def __init__(
        self, shed: Callable[[torch.Tensor], None], done: Callable[[Block], None]
    ) -> None:
        self._shed = shed
        self._done = done
        self._thread: ThreadPoolExecutor | None = None
        self._going: list[tuple[Block, Future[None]]] = []

    @property
    def nbytes(self) -> int:
        """What is on its way."""
        return sum(block.nbytes for block, _ in self._going)

    def begin(self, block: Block, memory: torch.Tensor) -> None:
        """These bytes go."""
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "shed", stand_back)
        self._going.append((block, self._thread.submit(self._shed, memory)))

    def look(self) -> None:
        """Tell of those that have gone."""
        going, self._going = self._going, []
        for block, gone in going:
            if gone.done():
                self._done(block)
            else:
                self._going.append((block, gone))

    async def until(self, nbytes: int) -> None:
        """Wait until no more than so many bytes are on their way."""
        while self._going and self.nbytes > nbytes:
            await asyncio.wait([asyncio.wrap_future(self._going[0][1])])
            self.look()

    def over(self) -> None:
        """To its end, without the event loop."""
        if self._thread is not None:
            self._thread.shutdown()
            self._thread = None
            self.look()
