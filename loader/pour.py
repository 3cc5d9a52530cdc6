"""A weights file on its way into its block: copied and hashed in one pass.

Owns: the pass. What landed is hashed right away: a chunk at a time, because each step
asks for the interpreter twice (docs/decisions/0018), or a slot where it goes through
one. Must not: fetch, allocate, or let go of the block. Its methods run in
the loader's threads: one at a time if the file is `ordered` (verified as a whole), else
one for each chunk.

On a CPU the final place is where bytes land; what the CPU cannot write (a GPU) or what
does not lie there as it lies in the file (the header, misaligned tensors) lands in the
staging pool and is pushed on from there.
"""

import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from loader.digest import LARGEST
from loader.errors import ArtifactRefused
from loader.placing import Placed, Run, cuts
from loader.pool import Pool, Ring
from loader.room import Array, Wanted
from loader.store import Changed
from loader.verify import check

Fill = Callable[[Array, int], None]
"""Writes the file's bytes from an offset on into an array."""


class Pouring:
    """One file, placed as its header says. `landing`, `direct`: of its block, see
    loader.room.Room. `step`: bytes that are read and then hashed, at most. `seconds`
    tells what took how long once it is closed."""

    def __init__(
        self,
        spec: Wanted,
        placed: Placed,
        landing: Any,
        direct: bool,
        pool: Pool,
        step: int = LARGEST,
    ) -> None:
        self._spec = spec
        self._data_start = placed.layout.data_start
        self._header = placed.header
        self._runs = placed.placing.runs
        self._landing = landing
        self._pool = pool
        one = (Run(0, placed.placing.nbytes, 0),)
        # The data section as it is: the CPU writes it where it belongs.
        self._place: Array | None = landing if direct and self._runs == one else None
        self._check = check(spec.weights)
        self._step = min(step, self._check.step)
        self.ordered = self._check.ordered
        self._lock = threading.Lock()
        self.seconds = {"fetch": 0.0, "verify": 0.0, "copy": 0.0}

    def bytes(self, start: int, pieces: Sequence[memoryview]) -> None:
        """The bytes of the file from `start` on. Raises Damaged, Changed."""
        for piece in pieces:
            source = np.frombuffer(piece, dtype=np.uint8)

            def copy(
                to: Array, at: int, source: Array = source, start: int = start
            ) -> None:
                # numpy lets go of the interpreter lock as it copies; slices do not.
                np.copyto(to, source[at - start : at - start + len(to)])

            self._pour(start, start + len(source), copy, "copy")
            start += len(source)

    def file(self, fd: int, start: int, end: int, wait: bool = True) -> None:
        """Bytes `[start, end)` of an open file. Raises OSError, and ArtifactRefused
        where the file ends before, or a chunk is damaged; Changed if its header is
        another one by now. Not `wait`: BlockingIOError, or another OSError, unless
        they are in the page cache; from the start of a chunk it may be begun anew."""
        flags = 0 if wait else os.RWF_NOWAIT

        def read(to: Array, at: int) -> None:
            done = 0
            while done < len(to):
                got = os.preadv(fd, [to[done:].data], at + done, flags)
                if not got:
                    raise ArtifactRefused(
                        self._spec.weights.name, "ended before its size"
                    )
                done += got

        self._pour(start, end, read, "fetch")

    def drawn(self, draw: Callable[[memoryview], None], start: int, end: int) -> None:
        """Bytes `[start, end)` of the file, which come next from `draw`: it fills what
        it is given. Raises what it does, Damaged, and Changed as `file` does."""
        self._pour(start, end, lambda to, at: draw(to.data), "fetch")

    def close(self, total: float) -> None:
        """All bytes are there, after `total` seconds: nobody may use them before this
        has checked them. Raises ArtifactRefused."""
        self._check.finish()
        spent = self.seconds["verify"] + self.seconds["copy"]
        self.seconds["fetch"] = max(0.0, total - spent)

    def _pour(self, start: int, end: int, fill: Fill, phase: str) -> None:
        laps, at = Laps(), start
        with self._pool.ring() as ring:
            while at < end:
                stop = self._stop(at, end, ring.size)
                through = False
                if self._place is None or at < self._data_start:
                    landing, through = ring.slot()[: stop - at], True
                else:
                    landing = self._place[at - self._data_start :][: stop - at]
                fill(landing, at)
                laps.end(phase)
                if through:  # first: a GPU copies it while we look at it
                    self._push(ring, at, stop)
                    laps.end("copy")
                if at < self._data_start:
                    self._compare(at, landing)
                self._check.update(at, landing.data)
                laps.end("verify")
                at = stop
        with self._lock:
            for name, seconds in laps.seconds.items():
                self.seconds[name] += seconds

    def _stop(self, at: int, end: int, slot: int) -> int:
        """Where the step from `at` ends: with the header, which has no place; with a
        slot's worth where one is needed, else with the chunk."""
        direct = self._place is not None and at >= self._data_start
        size = self._step if direct else slot
        stop = min(end, at - at % size + size)
        return min(stop, self._data_start) if at < self._data_start else stop

    def _compare(self, at: int, landed: Array) -> None:
        """The header came before, and alone, to say what goes where. It has to be the
        one that is verified here."""
        if landed.tobytes() != self._header[at : at + len(landed)]:
            raise Changed

    def _push(self, ring: Ring, at: int, stop: int) -> None:
        for to, first, last in cuts(self._runs, at - self._data_start, stop - at):
            ring.push(first, last, self._landing, to)


class Laps:
    """One thread's clock: seconds by phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._began = time.perf_counter()

    def end(self, phase: str) -> None:
        """What was done since the last one was `phase`."""
        now = time.perf_counter()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._began
        self._began = now
