"""Who waits for a call: a line a model, and the order of their turns.

Owns: that order, and that nobody is left in a line who has gone. Must not: choose what
runs, or run it (runtime/batch.py).

By identity and not by name: a job runs in the life of its model that it has a lease on,
and no other. (A line holds its model: no id comes twice while it is here.)
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from runtime.errors import DeadlinePassed
from runtime.line import LATE, Call, Job, Line

At = Callable[[float, Callable[[Job], None], Job], asyncio.TimerHandle]
"""The loop's `call_at`."""


class Lines:
    """The lines there are. `next` takes the turns, oldest line first."""

    def __init__(self) -> None:
        self._lines: dict[int, Line] = {}
        self._turns: deque[Line] = deque()
        self._came: list[Job] = []
        self.queued = 0
        """Jobs in all lines."""

    def __len__(self) -> int:
        return len(self._lines)

    def __iter__(self) -> Iterator[Line]:
        return iter(self._lines.values())

    def put(self, job: Job, ripe: float) -> None:
        """A job comes. `ripe`: until when it may wait for others."""
        key = id(job.model)
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = Line(job.model, ripe=ripe)
            self._turns.append(line)
        line.jobs.append(job)
        if job.deadline is not None:
            self._came.append(job)
            if job.deadline < ripe:
                line.ripe = job.since  # it has no time to wait for others
        self.queued += 1

    def withdraw(self, job: Job) -> None:
        """Nobody waits for this job: its bytes go now, its lease does too. Were it left
        until a lane is free, the dead could fill the line against the living."""
        line = self._lines[id(job.model)]
        line.jobs.remove(job)
        job.waits = False
        self.queued -= 1
        if not line.jobs:
            self._gone(line)

    def late(self, job: Job) -> None:
        """Its deadline passed while it waited."""
        if job.waits:
            self.withdraw(job)
            if not job.done.done():
                job.done.set_exception(DeadlinePassed(LATE))

    def next(self) -> Line | None:
        """Whose turn it is; out of the order until it is put back."""
        while self._turns:
            line = self._turns.popleft()
            if line.jobs:  # else all of it went, and it is no line any more
                return line
        return None

    def take(self, call: Call) -> None:
        """The jobs of a call go."""
        for line, batch in zip(call.lines, call.batches, strict=True):
            line.take(batch)
            self.queued -= len(batch)
            if not line.jobs:
                self._gone(line)

    def had_its_turn(self, line: Line, delay: float) -> None:
        """What is left of it goes behind the others."""
        if line.jobs:
            since = line.jobs[0].since
            hurried = any(
                job.deadline is not None and job.deadline < job.since + delay
                for job in line.jobs
            )
            line.ripe = since if hurried else since + delay
            self._turns.append(line)

    def wait_on(self, lines: Sequence[Line]) -> None:
        """They could not have their turn, and keep their places before all others."""
        self._turns.extendleft(reversed(lines))

    def watch(self, at: At) -> None:
        """What has come and still waits hears of its deadline when it passes."""
        for job in self._came:
            if job.waits and job.deadline is not None:
                job.alarm = at(job.deadline, self.late, job)
        self._came.clear()

    def ripe(self) -> float | None:
        """When the next line has waited for company long enough; None without lines."""
        return min((line.ripe for line in self), default=None)

    def _gone(self, line: Line) -> None:
        """It may stand in the order still; `next` passes over it."""
        del self._lines[id(line.model)]
