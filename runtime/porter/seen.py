"""The engine's slabs as a porter sees them.

Owns: their mappings here, and that pages which changed places there do so here. Must
not: know what is written where.
"""

import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from loader.region import Region
from loader.room import Array
from runtime.porter.messages import Came, Swapped, Went


@dataclass(frozen=True, slots=True)
class View:
    """One of them. `fd`: ours."""

    memory: Array
    fd: int
    region: Region


class Seen:
    """All of them, by number."""

    def __init__(self) -> None:
        self._slabs: dict[int, View] = {}

    def heard(self, order: Came | Went | Swapped, fds: Sequence[int]) -> None:
        """What the engine says of one; a descriptor is ours from then on."""
        if isinstance(order, Came):
            (fd,) = fds
            memory = mmap.mmap(fd, 0)
            seen = np.frombuffer(memory, dtype=np.uint8)[: order.nbytes]
            self._slabs[order.number] = View(seen, fd, Region(fd, memory, order.runs))
        elif isinstance(order, Swapped):
            for trade in order.trades:
                self._slabs[order.number].region.swap(*trade, now=True)
        else:
            gone = self._slabs.pop(order.number, None)
            if gone is not None:
                os.close(gone.fd)

    def memory(self, slab: int, start: int, nbytes: int) -> Array:
        """So many bytes of one."""
        return self._slabs[slab].memory[start : start + nbytes]
