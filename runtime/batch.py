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
import time
from collections.abc import Sequence

from loader.load import Model
from loader.threads import settled
from runtime.company import Company
from runtime.conformance import Fitted
from runtime.contents import Part
from runtime.errors import DeadlinePassed, QueueFull
from runtime.forward import Ended
from runtime.lanes import Lanes
from runtime.line import LATE, Call, Job, Line, Witness
from runtime.lines import Lines
from runtime.pace import TURN_S
from runtime.ways import Ways


class Batcher:
    """Turns waiting requests into calls. One instance, one event loop.

    `delay`: seconds that a request may wait for others of its model. `ways`: in which
    a call may run, other than as it is.
    """

    def __init__(
        self,
        lanes: Lanes,
        witness: Witness,
        max_queued: int,
        together: bool = True,
        delay: float = 0.0,
        ways: Ways | None = None,
    ) -> None:
        self._lanes = lanes
        self._witness = witness
        self._max_queued = max_queued
        self._together = together
        self._delay = delay if together else 0.0
        self._loop = asyncio.get_running_loop()
        self._clock = self._loop.time
        self._ways = ways or Ways(lanes)
        self._company = Company(self._loop.call_soon)
        self._lines = Lines()
        self._ends: asyncio.Handle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._rings = 0.0

    @property
    def queued(self) -> int:
        """Requests that wait."""
        return self._lines.queued

    async def run(
        self, model: Model, asked: Fitted, deadline: float | None = None
    ) -> list[Part]:
        """The model's outputs for these inputs (on the CPU), rows in the same order.

        Cancelled while waiting: out of the line, nothing runs. Cancelled while running:
        raised when the lane is done. Raises QueueFull, DeadlinePassed, DeviceFull.
        """
        if self._lines.queued >= self._max_queued:
            raise QueueFull(f"{self.queued} requests wait for the device already", 0.5)
        now = self._clock()
        if deadline is not None and deadline <= now:
            raise DeadlinePassed(LATE)
        at_once = not (self._company.expected or self._delay or self._lines)
        if at_once:
            self._company.alone()
            ended = self._ways.here(model, asked)
            if ended is not None:
                return self._told(model, asked, ended)
        job = Job(model, asked, deadline, now, self._loop.create_future())
        self._lines.put(job, now + self._delay)
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
                self._lines.withdraw(job)
            elif job.call is not None:
                await settled(job.call)  # trap 4 of runtime/cache.py
            raise
        finally:
            if job.alarm is not None:
                job.alarm.cancel()

    def _told(self, model: Model, asked: Fitted, ended: Ended) -> list[Part]:
        """What became of a request that ran at once."""
        self._witness(model, (0.0,), asked.rows, ended.seconds)
        (outcome,) = ended.outcomes
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

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
        stay: list[Line] = []
        self._ways.turn()
        lines = self._lines
        while (line := lines.next()) is not None:
            if calls and time.perf_counter() - began > TURN_S:
                stay.append(line)
                self._soon()  # others have waited for the loop long enough
                break
            if self._begun(line):
                calls += 1
                lines.had_its_turn(line, self._delay)
            elif line.jobs:
                stay.append(line)
        lines.wait_on(stay)
        self._watch()
        return calls

    def _begun(self, line: Line) -> bool:
        """Run a line's next call, here or in a lane; False if neither can be now."""
        now = self._clock()
        batch, rows, late = line.batch(now, self._together)
        for job in late:
            self._lines.late(job)
        if not batch:
            return False
        call = self._ways.call(line, batch, rows, self._lines, now, self._together)
        short = self._ways.is_short_call(call)
        if not short and not self._lanes.free:
            return False
        jobs = call.jobs
        waits = [now - job.since for job in jobs]
        self._lines.take(call)
        if short:
            try:
                ended = self._lanes.run_here(call.work)
            except Exception as error:  # noqa: BLE001 - the callers hear it
                ended = Ended([error] * len(jobs), 0.0)
            self._finish(jobs, ended)
            self._ways.ran(call, ended, ended.seconds)
            call.told(self._witness, waits, ended)
            return True
        lane = self._lanes.start(call.work)
        for job in jobs:
            job.call = lane
        lane.add_done_callback(lambda _: self._landed(call, waits, lane))
        return True

    def _landed(
        self, call: Call, waits: Sequence[float], lane: "asyncio.Future[Ended]"
    ) -> None:
        jobs = call.jobs
        try:
            ended = lane.result()
        except Exception as error:  # noqa: BLE001 - whatever it is, the callers hear it
            ended = Ended([error] * len(jobs), 0.0)
        self._finish(jobs, ended)
        self._ways.ran(call, ended)
        call.told(self._witness, waits, ended)
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
        self._lines.watch(self._loop.call_at)
        ripe = self._lines.ripe() if self._delay else None
        if ripe is None or (self._timer is not None and self._rings <= ripe):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._rings = ripe  # uvloop's timer may be a plain Handle, without `when`
        self._timer = self._loop.call_at(ripe, self._ripened)

    def _ripened(self) -> None:
        self._timer = None
        self._turned()
