"""Both sides of the seam in one process, over a real socket and real shared memory.

async with apart(engine) as (remote, answering):
    await remote.predict(...)
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator

from runtime.counts import Counts
from runtime.link.answering import Answering
from runtime.link.memory import Region, anonymous
from runtime.link.remote import RemoteEngine
from runtime.metrics import Metrics

SIZE = 8 << 20


def region(nbytes: int = SIZE) -> tuple[Region, Region]:
    """The same memory twice: as its writer has it, and as its reader does."""
    fd = anonymous("test", nbytes)
    return Region(os.dup(fd)), Region(fd)


class Pair:
    """A RemoteEngine with its requests' memory, to which engines can be introduced."""

    def __init__(self, **remote) -> None:
        self._requests = anonymous("requests", SIZE)
        self.remote = RemoteEngine(Region(os.dup(self._requests)), **remote)
        self._met: list[tuple[Answering, asyncio.Event]] = []

    async def close(self) -> None:
        """Both sides have let go of everything."""
        self.remote.close()
        for answering, gone in self._met:
            answering.close()
            await gone.wait()
        os.close(self._requests)

    async def introduce(self, engine) -> Answering:
        """An engine that answers from now on. Close what it gives, and it is lost."""
        one, other = socket.socketpair()
        written, read = region()
        exposition, gone = Metrics(Counts(), "1"), asyncio.Event()
        answering = Answering(
            engine,
            exposition,
            Region(os.dup(self._requests)),
            written,
            asyncio.Lock(),
            gone.set,
        )
        self._met.append((answering, gone))
        await answering.open(one)
        await self.remote.meet(other, read)
        while not self.remote.ready:  # noqa: ASYNC110 - it is told in a moment
            await asyncio.sleep(0)
        return answering


@contextlib.asynccontextmanager
async def apart(engine, **remote) -> AsyncIterator[tuple[RemoteEngine, Answering]]:
    """`engine`, asked from the other side."""
    pair = Pair(**remote)
    try:
        yield pair.remote, await pair.introduce(engine)
    finally:
        await pair.close()
