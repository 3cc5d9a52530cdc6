"""A weights file on its way into its block: copied and hashed in one pass.

Owns: the pass. Each half megabyte is hashed right after it landed, while it is still in
the core's own cache. Must not: fetch, allocate, or let go of the block. Its methods run
in the loader's threads, one at a time.

On a CPU the final place is where bytes land; what the CPU cannot write (a GPU) or what
does not lie there as it lies in the file (the header, misaligned tensors) lands in the
staging pool and is pushed on from there.
"""

import hashlib
import os
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from loader.errors import ArtifactRefused
from loader.manifest import ModelSpec
from loader.pool import SLOT, Pool, Ring
from loader.weights import Placed, Run, cuts

Array = npt.NDArray[np.uint8]
Fill = Callable[[Array, int], None]
"""Writes the file's bytes from an offset on into an array."""


class Pouring:
    """One file. `seconds` tells what took how long once it is closed."""

    def __init__(
        self,
        spec: ModelSpec,
        placed: Placed,
        buffer: torch.Tensor,
        direct: bool,
        pool: Pool,
    ) -> None:
        self._spec = spec
        self._data_start = placed.layout.data_start
        self._runs = placed.placing.runs
        self._buffer = buffer
        self._pool = pool
        one = (Run(0, placed.placing.nbytes, 0),)
        # The data section as it is: the CPU writes it where it belongs.
        self._place = buffer.numpy() if direct and self._runs == one else None
        self._digest = hashlib.sha256()
        self.seconds = {"fetch": 0.0, "verify": 0.0, "copy": 0.0}

    def bytes(self, start: int, data: memoryview) -> None:
        """The next bytes of the file, in order, from file offset `start`."""
        source = np.frombuffer(data, dtype=np.uint8)

        def copy(to: Array, at: int) -> None:
            began = time.perf_counter()
            # numpy lets go of the interpreter lock while it copies; slices do not.
            np.copyto(to, source[at - start : at - start + len(to)])
            self.seconds["copy"] += time.perf_counter() - began

        self._pour(start, start + len(source), copy)

    def file(self, fd: int, start: int, end: int) -> None:
        """Bytes `[start, end)` of an open file, which come next. Raises OSError,
        ArtifactRefused if the file ends before."""

        def read(to: Array, at: int) -> None:
            done = 0
            while done < len(to):
                got = os.preadv(fd, [to[done:].data], at + done)
                if not got:
                    raise ArtifactRefused(
                        self._spec.weights.name, "ended before its size"
                    )
                done += got

        self._pour(start, end, read)

    def close(self, total: float) -> None:
        """All bytes are there, after `total` seconds: check the digest before anybody
        may use them. Raises ArtifactRefused."""
        if self._digest.hexdigest() != self._spec.weights.sha256:
            raise ArtifactRefused(
                self._spec.weights.name, "its SHA-256 is not the one in model.json"
            )
        spent = self.seconds["verify"] + self.seconds["copy"]
        self.seconds["fetch"] = max(0.0, total - spent)

    def _pour(self, start: int, end: int, fill: Fill) -> None:
        at = start
        with self._pool.ring() as ring:
            while at < end:
                in_header = at < self._data_start
                stop = min(end, at + SLOT)
                if in_header:
                    stop = min(stop, self._data_start)
                if self._place is None or in_header:
                    self._through(ring, at, stop, fill)
                else:
                    first = at - self._data_start
                    landing = self._place[first : first + stop - at]
                    fill(landing, at)
                    self._hash(landing)
                at = stop

    def _through(self, ring: Ring, at: int, stop: int, fill: Fill) -> None:
        """By way of a slot."""
        slot = ring.slot()
        landing = slot.numpy()[: stop - at]
        fill(landing, at)
        self._hash(landing)
        began = time.perf_counter()
        for to, first, last in cuts(self._runs, at - self._data_start, stop - at):
            ring.push(slot[first:last], self._buffer[to : to + last - first])
        self.seconds["copy"] += time.perf_counter() - began

    def _hash(self, landed: Array) -> None:
        began = time.perf_counter()
        self._digest.update(landed.data)
        self.seconds["verify"] += time.perf_counter() - began
