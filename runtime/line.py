"""What waits for one model, and who of it goes together.

Owns: the jobs of a line, and which of them make the next call. Must not: run, time or
wake anything (runtime/batch.py).
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from loader.load import Model
from runtime.conformance import Fitted, Signature
from runtime.contents import Part
from runtime.cross import MOST, key
from runtime.forward import Ended
from runtime.recorded import Recording

LATE = "the deadline passed while the request waited"

Witness = Callable[[Model, Sequence[float], int, float], None]
"""Told of every call that ended: its model, how long each of its requests waited, its
rows, its seconds."""


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


@dataclass(eq=False, slots=True)
class Call:
    """The next calls of some lines, as one: `batches` by line, `rows` of each line."""

    lines: list[Line]
    batches: list[list[Job]]
    rows: int
    work: Callable[[], Ended]
    recording: Recording | None = None
    """What plays it on a GPU, if anything does."""

    @property
    def jobs(self) -> list[Job]:
        """Of all lines, in order."""
        return [job for batch in self.batches for job in batch]

    @property
    def shape(self) -> tuple[str, Signature, int]:
        """What its time is remembered by."""
        digest = self.lines[0].model.graph.digest
        shared = f"{digest} across" if len(self.lines) > 1 else digest
        signature = self.batches[0][0].asked.signature
        return shared, signature, self.rows * len(self.lines)

    def told(self, witness: Witness, waits: Sequence[float], ended: Ended) -> None:
        """It ended. Of a shared call each model took its share."""
        share, at = ended.seconds / len(self.lines), 0
        for line, batch in zip(self.lines, self.batches, strict=True):
            witness(line.model, waits[at : at + len(batch)], self.rows, share)
            at += len(batch)


def mates(
    line: Line, batch: list[Job], rows: int, others: Iterable[Line], now: float
) -> list[tuple[Line, list[Job]]]:
    """Lines of the same graph whose next calls have the same datatypes, shapes and
    rows, with those calls; this one among them, in the order of their places in the
    arena."""
    graph, what = line.model.graph, key(line.model, batch[0].asked, rows)
    found = [(line, batch)]
    for other in others:
        if other is line or other.model.graph is not graph:
            continue
        chosen, count, _ = other.batch(now, True)
        if chosen and key(other.model, chosen[0].asked, count) == what:
            found.append((other, chosen))
            if len(found) == MOST:
                break
    return sorted(found, key=lambda pair: pair[0].model.place)
