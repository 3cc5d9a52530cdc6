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
from functools import partial

from loader.load import Model
from loader.threads import settled
from runtime.company import Company
from runtime.conformance import Fitted
from runtime.contents import Part
from runtime.cross import LEAST, Cross, Key, key
from runtime.errors import DeadlinePassed, QueueFull
from runtime.forward import Ended, alone, forward, forward_across, played
from runtime.lanes import Lanes
from runtime.line import LATE, Call, Job, Line, Witness, mates
from runtime.lines import Lines
from runtime.pace import INLINE_S, TURN_S, Pace
from runtime.recorded import Recording
from runtime.recordings import Recordings


class Batcher:
    """Turns waiting requests into calls. One instance, one event loop.

    `delay`: seconds that a request may wait for others of its model. `cross`: whether
    models of one graph share calls too. `recordings`: calls that a GPU plays by itself.
    """

    def __init__(
        self,
        lanes: Lanes,
        witness: Witness,
        max_queued: int,
        together: bool = True,
        delay: float = 0.0,
        cross: Cross | None = None,
        recordings: Recordings | None = None,
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
        self._lines = Lines()
        self._ends: asyncio.Handle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._rings = 0.0
        self._cross = cross if together else None
        self._recordings = recordings
        self._apart: set[Key] = set()

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
            if self._lanes.inline:
                if self._pace.is_short(model.graph.digest, asked.signature, asked.rows):
                    return self._here(model, asked)
            elif (recording := self._at_hand(model, asked)) is not None:
                return self._play(recording, model, asked)
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

    def _at_hand(self, model: Model, asked: Fitted) -> Recording | None:
        """A recording of this call that may be played on the loop just now."""
        recordings = self._recordings
        if recordings is None or not self._lanes.idle:
            return None
        found = recordings.find(model, asked, asked.rows)
        return found if found is not None and found.seconds < INLINE_S else None

    def _play(self, recording: Recording, model: Model, asked: Fitted) -> list[Part]:
        """Run a call that is recorded, and known to be short, on the event loop."""
        ended = self._lanes.run_here(played, recording, model, (asked,))
        (outcome,) = ended.outcomes
        self._witness(model, (0.0,), asked.rows, ended.seconds)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def _here(self, model: Model, asked: Fitted) -> list[Part]:
        """Run a call that is known to be short on the event loop itself."""
        # Not the loop's clock: uvloop's has milliseconds, and stands still meanwhile.
        began, busy = time.perf_counter(), time.thread_time()
        outcome = self._lanes.run_here(alone, model, asked)
        busy, seconds = time.thread_time() - busy, time.perf_counter() - began
        shape = model.graph.digest, asked.signature, asked.rows
        self._pace.told(*shape, busy, seconds)
        self._witness(model, (0.0,), asked.rows, seconds)
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
        self._apart.clear()
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
        call = self._call(line, batch, rows, now)
        short = call.is_short(self._pace) if self._lanes.inline else self._plays(call)
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
            call.told(self._pace, self._witness, waits, ended, ended.seconds)
            return True
        lane = self._lanes.start(call.work)
        for job in jobs:
            job.call = lane
        lane.add_done_callback(lambda _: self._landed(call, waits, lane))
        return True

    def _call(self, line: Line, batch: list[Job], rows: int, now: float) -> Call:
        """These jobs as a call; with those of other models of the graph if it pays."""
        model, first = line.model, batch[0].asked
        cross = self._cross
        if cross is not None and len(self._lines) >= LEAST:
            what = key(model, first, rows)
            if what not in self._apart and cross.may(model, first, rows):
                self._apart.add(what)
                group = mates(line, batch, rows, self._lines, now)
                models = [mate.model for mate, _ in group]
                shared = len(group) >= LEAST and cross.forward(models, first, rows)
                if shared:
                    self._apart.discard(what)
                    asked = [[job.asked for job in jobs] for _, jobs in group]
                    return Call(
                        [mate for mate, _ in group],
                        [jobs for _, jobs in group],
                        rows,
                        lambda: forward_across(shared, models, asked),
                    )
        together = [job.asked for job in batch]
        recording = None
        if self._recordings is not None:
            recording = self._recordings.find(model, first, rows)
        if recording is None:
            return Call([line], [batch], rows, lambda: forward(model, together))
        work = partial(played, recording, model, together)
        return Call([line], [batch], rows, work, recording)

    def _plays(self, call: Call) -> bool:
        """True if it is recorded, and may be played on the loop just now."""
        found, idle = call.recording, self._lanes.idle
        return idle and found is not None and found.seconds < TURN_S

    def _landed(
        self, call: Call, waits: Sequence[float], lane: "asyncio.Future[Ended]"
    ) -> None:
        jobs = call.jobs
        try:
            ended = lane.result()
        except Exception as error:  # noqa: BLE001 - whatever it is, the callers hear it
            ended = Ended([error] * len(jobs), 0.0)
        self._finish(jobs, ended)
        call.told(self._pace, self._witness, waits, ended)
        if self._recordings is not None and call.recording is None:
            first = call.lines[0].model, call.batches[0][0].asked
            self._recordings.ran(*first, call.rows)
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
