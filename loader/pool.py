"""The staging pool: where bytes land on their way to where the CPU cannot write.

Owns: a few pages of host memory made at start (touched, in huge pages, pinned if there
is a GPU), cut into rings, and the copies out of them. Must not: know files or models.

A loader thread borrows a ring for as long as it moves one range. While one slot is on
its way to the device, the next is being filled and hashed.
"""

import queue
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

from loader.memory import mapped, pin, unpin

SLOT = 512 << 10
"""Bytes of a slot: small enough that what was just written is hashed from the core's
own cache, large enough that a copy to a GPU is not all overhead."""

SLOTS = 4


class Ring:
    """Slots used in turn. One thread at a time."""

    def __init__(self, memory: torch.Tensor, device: torch.device) -> None:
        self._slots = _cut(memory, SLOT)
        self._next = 0
        self._stream: torch.cuda.Stream | None = None
        self._copied: list[torch.cuda.Event] = []
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            self._copied = [
                torch.cuda.Event()  # type: ignore[no-untyped-call]
                for _ in self._slots
            ]

    def slot(self) -> torch.Tensor:
        """The next slot, free to be written: what was pushed from it has left."""
        self._next = (self._next + 1) % len(self._slots)
        if self._copied:
            self._copied[self._next].synchronize()
        return self._slots[self._next]

    def push(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """Copy (part of) the slot given last to its place on the device."""
        with torch.cuda.stream(self._stream) if self._stream else nullcontext():
            target.copy_(source, non_blocking=True)
        if self._stream is not None:
            self._copied[self._next].record(self._stream)

    def flush(self) -> None:
        """Return when all that was pushed is there."""
        if self._stream is not None:
            self._stream.synchronize()


class Pool:
    """`rings` rings; as many as there are threads that borrow, or they wait."""

    def __init__(self, rings: int, device: torch.device) -> None:
        self._memory = mapped(rings * SLOTS * SLOT, faulted=True)
        self._pinned = device.type == "cuda"
        if self._pinned:
            pin(self._memory)
        self._idle: queue.SimpleQueue[Ring] = queue.SimpleQueue()
        for part in _cut(self._memory, SLOTS * SLOT):
            self._idle.put(Ring(part, device))

    @property
    def nbytes(self) -> int:
        """Host bytes it takes."""
        return self._memory.numel()

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
        if self._pinned:
            unpin(self._memory)


def _cut(memory: torch.Tensor, size: int) -> list[torch.Tensor]:
    return [memory[at : at + size] for at in range(0, memory.numel(), size)]
