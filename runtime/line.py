"""What waits for one model, and who of it goes together.

Owns: the jobs of a line, and which of them make the next call. Must not: run, time or
wake anything (runtime/batch.py).
"""

import asyncio
from collections import deque
from dataclasses import dataclass, field

from loader.load import Model
from runtime.conformance import Fitted
from runtime.contents import Part
from runtime.forward import Ended


@dataclass(eq=False, slots=True, weakref_slot=True)
class Job:
    """One request that waits for the end of a turn, or for a lane."""

    model: Model
    asked: Fitted
    deadline: float | None
    since: float
    done: asyncio.Future[list[Part]]
    waits: bool = True
    call: asyncio.Future[Ended] | None = None
    """The lane that runs it; None while it waits, and for what ran on the loop."""
    alarm: asyncio.TimerHandle | None = None


@dataclass(eq=False, slots=True)
class Line:
    """What waits for one model. It lives while somebody waits."""

    model: Model
    jobs: deque[Job] = field(default_factory=deque)
    ripe: float = 0.0
    """When it may go although more would fit in."""

    def batch(self, now: float, together: bool) -> tuple[list[Job], int, list[Job]]:
        """The next call: the oldest job and what fits beside it, none if it had better
        wait for more; its rows; and the jobs whose deadline has passed."""
        chosen: list[Job] = []
        late: list[Job] = []
        limit = self.model.spec.max_batch_size if together else 0
        rows = 0
        for job in self.jobs:
            asked = job.asked
            if job.done.done():
                continue  # cancelled in this very turn; it leaves by itself
            if job.deadline is not None and job.deadline <= now:
                late.append(job)
            elif not chosen:
                chosen, rows = [job], asked.rows
            elif rows + asked.rows > limit:
                break
            elif asked.signature == chosen[0].asked.signature:
                chosen.append(job)
                rows += asked.rows
        return (chosen if rows >= limit or self.ripe <= now else []), rows, late

    def take(self, chosen: list[Job]) -> None:
        """They go; the others keep their order."""
        for job in chosen:
            job.waits = False
        if len(chosen) == len(self.jobs):
            self.jobs.clear()
        else:
            self.jobs = deque([job for job in self.jobs if job.waits])
