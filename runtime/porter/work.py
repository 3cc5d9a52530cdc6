"""The porter's own side: orders come, bytes are brought, reports go.

Owns: what is under way. Must not: import torch, or decide what is loaded.
"""

import asyncio
import os
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from socket import socket

import numpy as np
import structlog

from loader.cores import go_to
from loader.fill import Filler
from loader.placing import Placings
from loader.pool import host_pool
from loader.quota import cores
from loader.spool import Spool
from loader.store import Store
from loader.tap import Tap
from loader.threads import to_its_end
from loader.turns import ERRAND, Crew, Errand, Turns
from runtime import logs
from runtime.link.packets import Packets
from runtime.porter.given import Given, Model, Untold
from runtime.porter.messages import (
    CALLED_OFF,
    ORDERS,
    UNTOLD,
    Beat,
    Begin,
    CallOff,
    Came,
    Copy,
    Disk,
    Done,
    Failed,
    Fill,
    Hurry,
    Order,
    Report,
    Stop,
    Swapped,
    Up,
    Went,
    failed,
    file_of,
)
from runtime.porter.seen import Seen

log = structlog.get_logger()

BEAT_S = 1.0

STEP = 1 << 20
"""Bytes that are read and then hashed from the core's own cache: a tenth quicker than 8
MiB. In the engine each step asks for the interpreter (docs/decisions/0018); here nobody
else wants it."""

DRAWERS = 8
"""Threads that wait for a near store's bytes. Of their own: a store that has stopped
answering keeps them, and nobody else's loads."""

WRITE = 32 << 10
"""Bytes that are written to the disk tier at a time. For a write the kernel takes pages
as large as it, up to 2 MiB (XFS, ext4 since Linux 6.16). Once memory is full of cached
files there are none of those, and it moves others out of the way to make some: within
the write and in threads of its own that stand back for nobody, both for milliseconds
without a pause. Of this size there are always some. In the engine each step asks for
the interpreter, and that costs more."""


@dataclass(slots=True)
class News:
    """What is to be told of the disk tier."""

    files: dict[str, int] = field(default_factory=dict)
    told: Disk | None = None


class Work:
    """One for the process. `spare`: a core that only large files are worth going to.
    `over` is done when the engine is gone or says so."""

    def __init__(self, end: socket, spare: Sequence[int] = ()) -> None:
        self._spare = spare
        self._loop = asyncio.get_running_loop()
        self.over: asyncio.Future[None] = self._loop.create_future()
        self._packets: Packets[Report, Order] = Packets(
            end, ORDERS, self._obey, self._end
        )
        self._seen = Seen()
        self._tasks: dict[int, asyncio.Task[Done]] = {}
        self._errands: dict[int, Errand] = {}
        self._turns = Turns()
        self._crew: Crew | None = None
        self._filler: Filler | None = None
        self._spool: Spool | None = None
        self._tap: Tap | None = None
        self._news = News()
        self._beats = self._loop.create_task(self._beat())

    async def close(self) -> None:
        """Call off what is under way, and finish what is being written."""
        self._beats.cancel()
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        if self._spool is not None:
            await asyncio.to_thread(self._spool.close)
        if self._tap is not None:
            self._tap.close()
        self._packets.close()

    def _end(self) -> None:
        if not self.over.done():
            self.over.set_result(None)

    def _obey(self, order: Order, fds: Sequence[int]) -> None:
        try:
            self._heard(order, fds)
        except Exception as error:
            # One that does not do what it is told is worse than none.
            log.critical("the porter cannot do what it is told", exc_info=error)
            os._exit(1)

    def _heard(self, order: Order, fds: Sequence[int]) -> None:
        if isinstance(order, Fill):
            self._begun(order.call, order.urgent, self._filled(order))
        elif isinstance(order, Copy):
            self._begun(order.call, True, self._copied(order))
        elif isinstance(order, Hurry | CallOff):
            self._changed_mind(order)
        elif isinstance(order, Came | Went | Swapped):
            self._seen.heard(order, fds)
        elif isinstance(order, Begin):
            self._begin(order)
        elif isinstance(order, Stop):
            self._end()

    def _begun(
        self, call: int, urgent: bool, work: Coroutine[None, None, Done]
    ) -> None:
        errand = self._errands[call] = Errand(urgent)
        self._turns.begin(errand)
        context = copy_context()
        context.run(ERRAND.set, errand)
        task = self._loop.create_task(work, context=context)
        self._tasks[call] = task
        # Not in the task: one that is cancelled before its first step runs no line of
        # it.
        task.add_done_callback(partial(self._answer, call, errand))

    def _changed_mind(self, order: Hurry | CallOff) -> None:
        if order.call not in self._tasks:
            return  # its answer is on its way
        errand = self._errands[order.call]
        if isinstance(order, Hurry):
            self._turns.hurry(errand)
        else:
            self._turns.call_off(errand)
            self._tasks[order.call].cancel()

    def _begin(self, begin: Begin) -> None:
        logs.configure(*begin.log)
        opener: type[Store] = resolve_name(begin.opener)
        threads = ThreadPoolExecutor(begin.threads, "porter")
        self._crew = Crew(threads, self._turns)
        if begin.folder:
            folder = Path(os.fsdecode(begin.folder))
            self._spool = Spool(folder, begin.size, self._changed, WRITE)
        store = opener.open(os.fsdecode(begin.store))
        self._tap = store.tap()
        drawers = ThreadPoolExecutor(DRAWERS, "tap")
        self._filler = Filler(
            store,
            Placings(),
            self._crew,
            host_pool(begin.threads + len(self._spare)),
            self._spool,
            threads=min(4, cores()),
            step=STEP,
            inline=True,
            tap=None if self._tap is None else (self._tap, drawers),
            large=self._for_large_files(),
        )
        self._packets.say(Up())

    def _for_large_files(self) -> Sequence[Crew]:
        if not self._spare:
            return ()
        thread = ThreadPoolExecutor(1, "large", go_to, (self._spare,))
        return (Crew(thread, self._turns),)

    async def _filled(self, order: Fill) -> Done:
        assert self._filler is not None, "Not begun. This is a bug."
        model = Model(order.name, order.directory, file_of(order))
        memory = self._seen.memory(order.slab, order.start, order.nbytes)
        filled = await self._filler.fill(model, Given(memory, order.known))
        header = b"" if order.known else filled.placed.header
        return Done(order.call, filled.tier, dict(filled.seconds), header)

    async def _copied(self, order: Copy) -> Done:
        assert self._crew is not None, "Not begun. This is a bug."
        source = self._seen.memory(*order.source, order.nbytes)
        target = self._seen.memory(*order.target, order.nbytes)
        await to_its_end(self._crew, np.copyto, target, source)
        return Done(order.call, "host", {}, b"")

    def _answer(self, call: int, errand: Errand, task: "asyncio.Task[Done]") -> None:
        self._turns.end(errand)
        del self._tasks[call], self._errands[call]
        error = None if task.cancelled() else task.exception()
        report: Report
        if task.cancelled():
            report = Failed(call, CALLED_OFF, (), "")
        elif isinstance(error, Untold):
            report = Failed(call, UNTOLD, (), "")
        elif error is not None:
            report = failed(call, error)
        else:
            report = task.result()
        self._packets.say(report)
        self._tell()

    # -- the disk tier ----------------------------------------------------------------

    def _changed(self, digest: str, size: int) -> None:
        """In the threads of the disk tier and of the loads."""
        self._loop.call_soon_threadsafe(self._note, digest, size)

    def _note(self, digest: str, size: int) -> None:
        if not self._news.files:
            self._loop.call_soon(self._tell)
        self._news.files[digest] = size

    def _tell(self) -> None:
        if self._spool is None:
            return
        t = self._spool.tier()
        counts = t.hits, t.misses, t.evictions, t.failures
        files, self._news.files = list(self._news.files.items()), {}
        for at in range(0, max(1, len(files)), 1000):
            disk = Disk(files[at : at + 1000], counts, t.up)
            if disk.files or disk != self._news.told:
                self._packets.say(disk)
                self._news.told = Disk([], counts, t.up)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(BEAT_S)
            self._packets.say(Beat())
