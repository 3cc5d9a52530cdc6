"""Batching: requests for one model become one call.

    run -> alone, and short: at once, on the loop
        -> line of its model -> the turn of the loop ends -> all that came in it, up to
           max_batch_size rows -> here if it is short, else a lane -> split -> answers

Owns: the lines, one a model, and whose turn it is. Must not: lease, load, or delay,
unless told to (`delay`): what is there at the end of a turn of the event loop goes, and
only while all lanes are busy does a line grow; then the next call carries it all. No
added latency when idle, larger batches under load.

Models take turns by the age of their lines: since the oldest of a line came, or since
the model's last call, whichever is later; the oldest goes first, one call a turn. Ages
only grow, so that order is a queue's. No model starves another, however much is asked
of it; and a model whose calls are short never waits for a lane.

All state is the event loop's; only `forward` runs in a lane. A turn holds the loop up
for no more than TURN_S and one call.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Sequence

from loader.load import Model
from loader.threads import settled
from runtime.company import Company
from runtime.conformance import Fitted
from runtime.contents import Part
from runtime.errors import DeadlinePassed, QueueFull
from runtime.forward import Ended, alone, forward
from runtime.lanes import Lanes
from runtime.line import Job, Line
from runtime.pace import Pace

TURN_S = 1e-3
"""What all short calls of one turn together may hold the event loop up for."""


LATE = "the deadline passed while the request waited"

Witness = Callable[[Model, Sequence[float], int, float], None]
"""Told of every call that ended: its model, how long each of its requests waited, its
rows, its seconds."""


class Batcher:
    """Turns waiting requests into calls. One instance, one event loop.

    `delay`: seconds that a request may wait for others of its model.
    """

    def __init__(
        self,
        lanes: Lanes,
        witness: Witness,
        max_queued: int,
        together: bool = True,
        delay: float = 0.0,
    ) -> None:
        self._lanes = lanes
        self._witness = witness
        self._max_queued = max_queued
        self._together = together
        self._delay = delay if together else 0.0
        self._loop = asyncio.get_running_loop()
        self._clock = self._loop.time
        self._pace = Pace()
        self._company = Company(self._loop.call_soon)
        # By identity and not by name: a job runs in the life of its model that it has
        # a lease on, and no other. (A line holds its model: no id comes twice.)
        self._lines: dict[int, Line] = {}
        self._turns: deque[int] = deque()
        self._ends: asyncio.Handle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._came: list[Job] = []
        self.queued = 0

    async def run(
        self, model: Model, asked: Fitted, deadline: float | None = None
    ) -> list[Part]:
        """The model's outputs for these inputs (on the CPU), rows in the same order.

        Cancelled while waiting: out of the line, nothing runs. Cancelled while running:
        raised when the lane is done. Raises QueueFull, DeadlinePassed, DeviceFull.
        """
        if self.queued >= self._max_queued:
            raise QueueFull(f"{self.queued} requests wait for the device already", 0.5)
        now = self._clock()
        if deadline is not None and deadline <= now:
            raise DeadlinePassed(LATE)
        at_once = not (self._company.expected or self._delay or self._lines)
        if at_once:
            self._company.alone()
            if self._is_short(model, asked, asked.rows):
                return self._here(model, asked)
        job = Job(model, asked, deadline, now, self._loop.create_future())
        self._put(job)
        if at_once:
            self._start()
        else:
            self._soon()
        return await self._answer(job)

    async def _answer(self, job: Job) -> list[Part]:
        """Wait for it, and leave nothing behind whatever happens."""
        try:
            return await job.done
        except asyncio.CancelledError:
            if job.waits:
                self._withdraw(job)
            elif job.call is not None:
                await settled(job.call)  # trap 4 of runtime/cache.py
            raise
        finally:
            if job.alarm is not None:
                job.alarm.cancel()

    def _is_short(self, model: Model, asked: Fitted, rows: int) -> bool:
        return self._lanes.inline and self._pace.is_short(
            model.graph.digest, asked.signature, rows
        )

    def _here(self, model: Model, asked: Fitted) -> list[Part]:
        """Run a call that is known to be short on the event loop itself."""
        # Not the loop's clock: uvloop's has milliseconds, and stands still meanwhile.
        began = time.perf_counter()
        outcome = self._lanes.run_here(alone, model, asked)
        self._told(model, asked, (0.0,), asked.rows, time.perf_counter() - began)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def _told(
        self,
        model: Model,
        asked: Fitted,
        waits: Sequence[float],
        rows: int,
        seconds: float,
    ) -> None:
        self._pace.told(model.graph.digest, asked.signature, rows, seconds)
        self._witness(model, waits, rows, seconds)

    # -- lines ----------------------------------------------------------------------

    def _put(self, job: Job) -> None:
        key, ripe = id(job.model), job.since + self._delay
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = Line(job.model, ripe=ripe)
            self._turns.append(key)
        line.jobs.append(job)
        if job.deadline is not None:
            self._came.append(job)
            if job.deadline < ripe:
                line.ripe = job.since  # it has no time to wait for others
        self.queued += 1

    def _withdraw(self, job: Job) -> None:
        """Nobody waits for this job: its bytes go now, its lease does too. Were it left
        until a lane is free, the dead could fill the line against the living."""
        key = id(job.model)
        line = self._lines[key]
        line.jobs.remove(job)
        job.waits = False
        self.queued -= 1
        if not line.jobs:
            del self._lines[key]
            with contextlib.suppress(ValueError):  # not there while its turn is on
                self._turns.remove(key)

    def _late(self, job: Job) -> None:
        """Its deadline passed while it waited."""
        if job.waits:
            self._withdraw(job)
            if not job.done.done():
                job.done.set_exception(DeadlinePassed(LATE))

    # -- turns ----------------------------------------------------------------------

    def _turned(self) -> None:
        """A turn of the loop ended: run what came in it."""
        self._ends = None
        before = self.queued
        calls = self._start()
        if calls:
            self._company.turned(before - self.queued, calls)

    def _soon(self) -> None:
        if self._ends is None:
            self._ends = self._loop.call_soon(self._turned)

    def _start(self) -> int:
        """Run what can run: short calls here, others in free lanes. Gives the calls."""
        began, calls = time.perf_counter(), 0
        stay: list[int] = []
        while self._turns:
            if calls and time.perf_counter() - began > TURN_S:
                self._soon()  # others have waited for the loop long enough
                break
            key = self._turns.popleft()
            line = self._lines[key]
            if self._begun(line):
                calls += 1
            elif line.jobs:
                stay.append(key)
                continue
            if line.jobs:
                line.ripe = line.jobs[0].since + self._delay
                self._turns.append(key)
            else:
                self._lines.pop(key, None)
        self._turns.extendleft(reversed(stay))
        self._watch()
        return calls

    def _begun(self, line: Line) -> bool:
        """Run a line's next call, here or in a lane; False if neither can be now."""
        now = self._clock()
        batch, rows, late = line.batch(now, self._together)
        for job in late:
            self._late(job)
        if not batch:
            return False
        model, first = line.model, batch[0].asked
        short = self._is_short(model, first, rows)
        if not short and not self._lanes.free:
            return False
        together, waits = [], []
        for job in batch:
            together.append(job.asked)
            waits.append(now - job.since)
        line.take(batch)
        self.queued -= len(batch)
        if short:
            try:
                ended = self._lanes.run_here(forward, model, together)
            except Exception as error:  # noqa: BLE001 - the callers hear it
                ended = Ended([error] * len(batch), 0.0)
            self._finish(batch, ended)
            self._told(model, first, waits, rows, ended.seconds)
            return True
        call = self._lanes.start(lambda: forward(model, together))
        for job in batch:
            job.call = call
        call.add_done_callback(lambda _: self._landed(model, batch, waits, rows, call))
        return True

    def _landed(
        self,
        model: Model,
        batch: list[Job],
        waits: Sequence[float],
        rows: int,
        call: "asyncio.Future[Ended]",
    ) -> None:
        try:
            ended = call.result()
        except Exception as error:  # noqa: BLE001 - whatever it is, the callers hear it
            ended = Ended([error] * len(batch), 0.0)
        self._finish(batch, ended)
        self._told(model, batch[0].asked, waits, rows, ended.seconds)
        self._start()

    def _finish(self, batch: Sequence[Job], ended: Ended) -> None:
        for job, outcome in zip(batch, ended.outcomes, strict=True):
            if job.done.done():
                continue
            if isinstance(outcome, Exception):
                job.done.set_exception(outcome)
            else:
                job.done.set_result(outcome)

    def _watch(self) -> None:
        """What still waits when its turn has ended hears of its deadline in time, and
        lines that wait for company are looked at when they are ripe."""
        for job in self._came:
            if job.waits and job.deadline is not None:
                job.alarm = self._loop.call_at(job.deadline, self._late, job)
        self._came.clear()
        if self._delay and self._turns:
            ripe = min([self._lines[key].ripe for key in self._turns])
            if self._timer is None or self._timer.when() > ripe:
                if self._timer is not None:
                    self._timer.cancel()
                self._timer = self._loop.call_at(ripe, self._ripened)

    def _ripened(self) -> None:
        self._timer = None
        self._turned()
