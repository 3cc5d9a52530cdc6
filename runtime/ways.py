"""The ways in which a call may run, and which it takes.

    as it is   an op after the other
    shared     with calls for other models of its graph (runtime/cross.py)
    played     from a recording, on a GPU (runtime/recordings.py)

    on the event loop where it is known to be short, else in a lane

Owns: that choice, and telling those who learn from calls what became of one. Must not:
queue (runtime/batch.py), or measure ways against each other: those who know them do.
"""

import time
from functools import partial

from loader.load import Model
from runtime.conformance import Fitted
from runtime.cross import LEAST, Cross, Key, key
from runtime.forward import Ended, alone, forward, forward_across, played
from runtime.lanes import Lanes
from runtime.line import Call, Job, Line, mates
from runtime.lines import Lines
from runtime.pace import INLINE_S, TURN_S, Pace
from runtime.recorded import Recording
from runtime.recordings import Recordings


class Ways:
    """One for a batcher."""

    def __init__(
        self,
        lanes: Lanes,
        cross: Cross | None = None,
        recordings: Recordings | None = None,
    ) -> None:
        self._lanes = lanes
        self._pace = Pace()
        self._cross = cross
        self._recordings = recordings
        self._apart: set[Key] = set()

    # -- a request that is alone ------------------------------------------------------

    def here(self, model: Model, asked: Fitted) -> Ended | None:
        """Run it on the event loop, if it is known to be short; else None."""
        shape = model.graph.digest, asked.signature, asked.rows
        if not self._lanes.inline:
            recording = self._recorded(model, asked, asked.rows)
            if recording is None or not self._at_hand(recording, INLINE_S):
                return None
            return self._lanes.run_here(played, recording, model, (asked,))
        if not self._pace.is_short(*shape):
            return None
        # Not the loop's clock: uvloop's has milliseconds, and stands still meanwhile.
        began, busy = time.perf_counter(), time.thread_time()
        outcome = self._lanes.run_here(alone, model, asked)
        busy, seconds = time.thread_time() - busy, time.perf_counter() - began
        self._pace.told(*shape, busy, seconds)
        return Ended([outcome], seconds, busy)

    # -- a call of what came together -------------------------------------------------

    def turn(self) -> None:
        """A turn of the event loop: who had no mates may have some now."""
        self._apart.clear()

    def call(
        self,
        line: Line,
        batch: list[Job],
        rows: int,
        lines: Lines,
        now: float,
        together: bool,
    ) -> Call:
        """These jobs as a call; `together`: it may be shared, if that pays."""
        shared = self._shared(line, batch, rows, lines, now) if together else None
        if shared is not None:
            return shared
        model, every = line.model, [job.asked for job in batch]
        recording = self._recorded(model, every[0], rows)
        if recording is None:
            return Call([line], [batch], rows, partial(forward, model, every))
        work = partial(played, recording, model, every)
        return Call([line], [batch], rows, work, recording)

    def is_short_call(self, call: Call) -> bool:
        """True if it may run on the event loop."""
        if self._lanes.inline:
            return self._pace.is_short(*call.shape, len(call.jobs))
        return self._at_hand(call.recording, TURN_S)

    def ran(self, call: Call, ended: Ended, held_up: float = 0.0) -> None:
        """It did. `held_up`: seconds that the event loop was, if it ran there."""
        self._pace.told(*call.shape, ended.busy, held_up)
        well = not isinstance(ended.outcomes[0], Exception)
        if self._recordings is not None and call.recording is None and well:
            model, first = call.lines[0].model, call.batches[0][0].asked
            self._recordings.ran(model, first, call.rows)

    def _shared(
        self, line: Line, batch: list[Job], rows: int, lines: Lines, now: float
    ) -> Call | None:
        cross, model, first = self._cross, line.model, batch[0].asked
        if cross is None or len(lines) < LEAST:
            return None
        what = key(model, first, rows)
        if what in self._apart or not cross.may(model, first, rows):
            return None
        self._apart.add(what)
        group = mates(line, batch, rows, lines, now)
        models = [mate.model for mate, _ in group]
        if len(group) < LEAST:
            return None
        found = cross.forward(models, models.index(model), first, rows)
        if found is None:
            return None
        shared, chosen = found
        group, models = group[chosen], models[chosen]
        self._apart.discard(what)
        asked = [[job.asked for job in jobs] for _, jobs in group]
        work = partial(forward_across, shared, models, asked)
        return Call(
            [mate for mate, _ in group], [jobs for _, jobs in group], rows, work
        )

    def _recorded(self, model: Model, asked: Fitted, rows: int) -> Recording | None:
        if self._recordings is None:
            return None
        return self._recordings.find(model, asked, rows)

    def _at_hand(self, recording: Recording | None, bound: float) -> bool:
        """True if it may be played on the loop: behind a lane's work, or a trial's, it
        would wait there."""
        if recording is None or self._recordings is None or self._recordings.trying:
            return False
        return self._lanes.idle and recording.seconds < bound
