"""Rings that a GPU copies from by itself.

Owns: the locked memory of a staging pool, and the copies out of it, on streams of their
own. Must not: know files or models.
"""

import torch

from loader.digest import LARGEST
from loader.memory import mapped, pin, unpin
from loader.pool import Pool, cut, host_pool
from loader.room import Array

SLOT = LARGEST
"""Bytes of a slot: a chunk. Each step asks for the interpreter several times, as a copy
is begun for it: 200 MB took 49 ms in steps of half a megabyte, four threads at it, and
were 68 ms of such waits (docs/decisions/0022)."""

SLOTS = 2
"""One on its way to the device, one being filled."""


class PinnedRing:
    """See loader.pool.Ring; `landing` is a tensor of the device."""

    size = SLOT

    def __init__(self, memory: Array, device: torch.device) -> None:
        self._slots = cut(memory, SLOT)
        self._next = 0
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._copied = [
            torch.cuda.Event()  # type: ignore[no-untyped-call]
            for _ in self._slots
        ]

    def slot(self) -> Array:
        """See Ring."""
        self._next = (self._next + 1) % len(self._slots)
        self._copied[self._next].synchronize()
        return self._slots[self._next]

    def push(self, start: int, end: int, landing: torch.Tensor, to: int) -> None:
        """See Ring."""
        source = torch.from_numpy(self._slots[self._next][start:end])
        with torch.cuda.stream(self._stream):
            landing[to : to + end - start].copy_(source, non_blocking=True)
        self._copied[self._next].record(self._stream)

    def flush(self) -> None:
        """See Ring."""
        self._stream.synchronize()


def pool_for(device: torch.device, rings: int) -> Pool:
    """A staging pool for blocks on the device. Raises DeviceFull."""
    if device.type != "cuda":
        return host_pool(rings)
    memory = mapped(rings * SLOTS * SLOT, faulted=True)
    pin(memory)
    parts = cut(memory.numpy(), SLOTS * SLOT)
    return Pool([PinnedRing(part, device) for part in parts], lambda: unpin(memory))
