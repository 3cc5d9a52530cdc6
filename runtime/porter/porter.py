"""The porter as the engine sees it: one more way to fill a block, or to copy one.

Owns: when there is one, and that its death costs a load no more than time: whatever it
did not bring is brought by threads of our own, as it is while there is no porter. Must
not: read or verify anything itself.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Executor

import structlog
import torch

from loader.carrier import Threads
from loader.placing import Placed, Placings, place
from loader.room import Below, Filled, Room, Wanted
from loader.shared import Ground, SharedMemory
from loader.spool import Spool
from loader.threads import to_its_end
from loader.trades import Trade
from loader.turns import ERRAND
from runtime.porter.disks import Disks
from runtime.porter.messages import (
    Begin,
    Came,
    Copy,
    Disk,
    Done,
    Failed,
    Order,
    Report,
    Swapped,
    Up,
    Went,
    fill_of,
    fits,
)
from runtime.porter.orders import Gone, Orders
from runtime.porter.process import Process
from runtime.tree.lives import Lives

log = structlog.get_logger()

AFTER = 16
"""Loads (of SMALLEST or more) of a server before it gets a porter. One whose models
all fit has no use for it: it takes 40 MB, and a quarter of a second of CPU to begin."""

SMALLEST = 1 << 20
"""Bytes of a file or a copy that are worth asking for: a quarter of a megabyte is read,
hashed and placed in 0.1 ms, and asking takes that twice."""

TRIES = 3
"""Lives in a row that never come up, or do not listen; then loads stay in threads."""


class Porter:
    """A `Below` that has its bytes brought. `local`: who brings them otherwise."""

    def __init__(
        self,
        local: Below,
        placings: Placings,
        memory: SharedMemory,
        executor: Executor,
        begin: Begin,
        spool: Spool | None,
    ) -> None:
        self._local = local
        self._placings = placings
        self._memory = memory
        self._executor = executor
        self._threads = Threads(executor)
        self._begin = begin
        self._seen = 0
        self._loop = asyncio.get_running_loop()
        self._orders = Orders()
        self._process: Process | None = None
        self._up = False
        self._failed = 0
        self._closed = False
        self._lives = Lives()
        self._next: asyncio.TimerHandle | None = None
        self._disk = Disks(spool)
        memory.came, memory.went = self._came, self._went
        memory.swapped = self._swapped

    @property
    def pid(self) -> int:
        """See Below."""
        return self._process.pid if self._process is not None and self._up else 0

    @property
    def _listens(self) -> Process | None:
        return self._process if self._up else None

    async def fill(self, spec: Wanted, room: Room) -> Filled:
        """See Below."""
        if spec.weights.size < SMALLEST:
            return await self._local.fill(spec, room)
        self._seen += 1
        self._memory.gave_back()  # somebody may have looked at a slab for longer
        if self._seen > AFTER and self._next is None:
            self.start()
        if self._up and room.direct and fits(spec.weights):
            try:
                return await self._brought(spec, room)
            except Gone:
                log.info("a load is begun anew without the porter", model=spec.name)
        return await self._local.fill(spec, room)

    async def carry(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """See loader.carrier.Carrier."""
        here, there = self._memory.of(source), self._memory.of(target)
        large = source.numel() >= SMALLEST
        if large and self._up and here is not None and there is not None:
            order = Copy(self._orders.number(), here, there, source.numel())
            try:
                await self._orders.give(self._listens, order)
                return
            except Gone:
                log.info("a copy is begun anew without the porter")
        await self._threads.carry(source, target)

    def start(self) -> None:
        """Begin a life of it, if there is none."""
        self._next = None
        if self._closed or self._process is not None:
            return
        self._lives.begin(self._loop.time())
        try:
            self._process = Process(self._heard, self._ended)
        except Exception as error:  # noqa: BLE001 - whatever it is, threads go on
            self._failed += 1
            self._again(f"{type(error).__name__}: {error}")
            return
        self._must_hear(self._begin)
        for ground in self._memory.grounds.values():
            self._came(ground)

    @contextlib.asynccontextmanager
    async def living(self, at_once: bool) -> "AsyncIterator[Porter]":
        """There may be one while the block lasts. `at_once`: it need not be earned."""
        if at_once:
            self.start()
        try:
            yield self
        finally:
            await self._close()

    async def _close(self) -> None:
        self._closed = True
        if self._next is not None:
            self._next.cancel()
        if self._process is not None:
            await self._process.leave()
        self._memory.unwatched()

    # -- one load ---------------------------------------------------------------------

    async def _brought(self, spec: Wanted, room: Room) -> Filled:
        known = self._placings.of(spec.weights.identity)
        nbytes = spec.weights.size if known is None else known.placing.nbytes
        block = await room.find(nbytes)
        try:
            landing = room.landing(block)
            where = self._memory.where(landing)
            if where is None:
                raise Gone
            place = *where, len(landing)
            if known is not None:
                room.placed(block, known)
            errand, call = ERRAND.get(), self._orders.number()
            urgent = errand is None or errand.urgent
            order = fill_of(call, spec, place, urgent, known is not None)
            waiting = None if urgent else errand
            done = await self._orders.give(self._listens, order, waiting)
            placed = known or await self._placed(done.header, spec.weights.size)
        except BaseException:
            room.free(block)
            raise
        self._placings.verified(spec.weights.identity, placed)
        room.trim(block, placed.placing.nbytes)
        return Filled(block, placed, done.tier, done.seconds)

    async def _placed(self, header: bytes, size: int) -> Placed:
        placed = self._placings.placed(header, size)
        if placed is None:
            placed = await to_its_end(self._executor, place, header, size)
            self._placings.learn(header, size, placed)
        return placed

    # -- its lives --------------------------------------------------------------------

    def _came(self, ground: Ground) -> None:
        if ground.memory() is not None:
            came = Came(ground.number, ground.nbytes, ground.region.runs)
            self._must_hear(came, ground.fd)

    def _went(self, number: int) -> None:
        self._must_hear(Went(number))

    def _swapped(self, number: int, trades: Sequence[Trade]) -> None:
        self._must_hear(Swapped(number, list(trades)))

    def _must_hear(self, order: Order, *fds: int) -> None:
        if self._process is not None and not self._process.say(order, fds):
            # It may not be told more: not to fill pages that are elsewhere by now.
            self._up = False
            self._process.kill()

    def _heard(self, report: Report) -> None:
        if isinstance(report, Done | Failed):
            self._orders.told(report)
        elif isinstance(report, Disk):
            self._disk.told(report)
        elif isinstance(report, Up):
            self._up, self._failed = True, 0
            log.info("loads have a process of their own", pid=self.pid)

    def _ended(self, process: Process, code: int) -> None:
        self._failed += not self._up
        self._process, self._up = None, False
        self._orders.over()
        self._disk.ended()
        if not self._closed:
            self._again(f"code {code}")

    def _again(self, reason: str) -> None:
        if self._failed >= TRIES:
            log.error("there is no porter, loads stay in threads", reason=reason)
            self._closed = True
            return
        wait = self._lives.end(self._loop.time(), reason)
        log.error("the porter is replaced", reason=reason, wait=wait)
        self._next = self._loop.call_later(wait, self.start)
