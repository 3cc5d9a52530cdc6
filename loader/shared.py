"""Host memory as the device, in files in memory that another process can map as well.

Owns: those files, and which of them an address lies in. Must not: know who maps them,
or for what (runtime/porter/).

Pages of such a file are small ones nearly everywhere (shmem_enabled is "never" by
default). Forwards, reads and hashes took the same time there as in huge pages of
private memory, and the first touch of a page less. Giving them back costs more: so the
pages that somebody left behind are seen where somebody needs them (loader/region.py).
"""

import contextlib
import mmap
import os
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from loader.errors import DeviceFull
from loader.memory import HostMemory, shed_shared
from loader.region import Region
from loader.room import Array
from loader.trades import Trade


@dataclass(frozen=True, slots=True)
class Ground:
    """A slab as another process may map it. `fd`: open for as long as `memory` is
    there."""

    number: int
    fd: int
    nbytes: int
    region: Region
    memory: "weakref.ref[mmap.mmap]"

    @property
    def base(self) -> int:
        """Its address here."""
        return self.region.base


class SharedMemory(HostMemory):
    """See DeviceMemory. `came` and `went` are told of slabs, `swapped` of pages that
    changed places, before anybody is to write there."""

    def __init__(self) -> None:
        self.grounds: dict[int, Ground] = {}
        self.came: Callable[[Ground], None] = _nobody
        self.went: Callable[[int], None] = _nobody
        self.swapped: Callable[[int, Sequence[Trade]], None] = _nobody
        self._made = 0

    def slab(self, nbytes: int) -> torch.Tensor:
        """See DeviceMemory."""
        fd, size = -1, -(-max(1, nbytes) // mmap.PAGESIZE) * mmap.PAGESIZE
        try:
            fd = os.memfd_create("hotset-arena", os.MFD_CLOEXEC)
            os.ftruncate(fd, size)
            memory = mmap.mmap(fd, size)
        except (OSError, OverflowError, ValueError) as error:
            if fd >= 0:
                os.close(fd)
            raise DeviceFull("the host has no memory left for this model") from error
        weakref.finalize(memory, os.close, fd)
        slab = torch.frombuffer(memory, dtype=torch.uint8)[:nbytes]
        self._made += 1
        ground = Ground(self._made, fd, nbytes, Region(fd, memory), weakref.ref(memory))
        self.grounds[ground.number] = ground
        self.came(ground)
        return slab

    def swap(self, slab: torch.Tensor, trades: Sequence[Trade]) -> int:
        """See DeviceMemory."""
        place = self.of(slab)
        assert place is not None, "Not a slab of this memory. This is a bug."
        number, made = place[0], 0
        with contextlib.suppress(OSError):
            for trade in trades:
                self.grounds[number].region.swap(*trade)
                made += 1
        if made:
            self.swapped(number, trades[:made])
        return made

    def shed(self, unused: torch.Tensor) -> None:
        """See DeviceMemory."""
        shed_shared(unused)

    def gave_back(self) -> None:
        """See DeviceMemory. A slab that somebody still looks at goes the next time."""
        for ground in list(self.grounds.values()):
            if ground.memory() is None:
                del self.grounds[ground.number]
                self.went(ground.number)

    def unwatched(self) -> None:
        """Nobody is told of slabs any more."""
        self.came = self.went = self.swapped = _nobody

    def where(self, landing: Array) -> tuple[int, int] | None:
        """(number of the slab, start) of memory in one of them; None if it is not."""
        return self._place(landing.ctypes.data)

    def of(self, memory: torch.Tensor) -> tuple[int, int] | None:
        """As `where`."""
        return self._place(memory.data_ptr())

    def _place(self, address: int) -> tuple[int, int] | None:
        for ground in self.grounds.values():
            here = ground.base <= address < ground.base + ground.nbytes
            # One that is gone: its address may be somebody else's by now.
            if here and ground.memory() is not None:
                return ground.number, address - ground.base
        return None


def can_share() -> bool:
    """True if this machine, or its sandbox, has such files, gives pages back, and does
    not lie of those that change places."""
    memory, page = SharedMemory(), mmap.PAGESIZE
    try:
        slab = memory.slab(2 * page)
    except DeviceFull:
        return False
    slab[page:] = 1
    swapped = memory.swap(slab, [(0, page, page)])
    if swapped and (not bool(slab[:page].all()) or bool(slab[page:].any())):
        return False
    memory.shed(slab)
    return not bool(slab.any())


def _nobody(*what: object) -> None:
    pass
