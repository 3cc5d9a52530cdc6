"""The staging pool: where bytes land on their way to where the CPU cannot write, or
does not write them as they lie in the file.

Owns: rings of host memory made at start, and lending them. Must not: know files or
models, or need torch (rings that a GPU copies from: loader/pinned.py).

A loader thread borrows a ring for as long as it moves one range. While one slot is on
its way to the device, the next is being filled and hashed.
"""

import queue
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np

from loader.pages import pages
from loader.room import Array

SLOT = 512 << 10
"""Bytes of a slot that the CPU copies from: small enough that what was just written is
hashed, and copied, from the core's own cache."""

SLOTS = 4


class Ring(Protocol):
    """Slots of `size` bytes, used in turn. One thread at a time."""

    size: int

    def slot(self) -> Array:
        """The next slot, free to be written: what was pushed from it has left."""
        ...

    def push(self, start: int, end: int, landing: Any, to: int) -> None:
        """Copy bytes `[start, end)` of the slot given last to `to` of a block, which is
        what `loader.room.Room.landing` gave."""
        ...

    def flush(self) -> None:
        """Return when all that was pushed is there."""
        ...


class HostRing:
    """For blocks that the CPU can write."""

    size = SLOT

    def __init__(self, memory: Array) -> None:
        self._slots = cut(memory, SLOT)
        self._next = 0

    def slot(self) -> Array:
        """See Ring."""
        self._next = (self._next + 1) % len(self._slots)
        return self._slots[self._next]

    def push(self, start: int, end: int, landing: Array, to: int) -> None:
        """See Ring."""
        np.copyto(landing[to : to + end - start], self._slots[self._next][start:end])

    def flush(self) -> None:
        """See Ring."""


class Pool:
    """Those rings; as many as there are threads that borrow, or they wait."""

    def __init__(
        self, rings: Sequence[Ring], close: Callable[[], None] = lambda: None
    ) -> None:
        self._close = close
        self._idle: queue.SimpleQueue[Ring] = queue.SimpleQueue()
        for ring in rings:
            self._idle.put(ring)

    @contextmanager
    def ring(self) -> Iterator[Ring]:
        """Borrow a ring. What was pushed is on the device when it is given back."""
        ring = self._idle.get()
        try:
            yield ring
        finally:
            ring.flush()
            self._idle.put(ring)

    def close(self) -> None:
        """No thread uses it any more."""
        self._close()


def host_pool(rings: int) -> Pool:
    """For blocks that the CPU can write. Raises DeviceFull."""
    region = pages(rings * SLOTS * SLOT, faulted=True)
    memory = np.frombuffer(region, dtype=np.uint8)
    return Pool([HostRing(part) for part in cut(memory, SLOTS * SLOT)])


def cut(memory: Array, size: int) -> list[Array]:
    """Parts of `size`."""
    return [memory[at : at + size] for at in range(0, len(memory), size)]
