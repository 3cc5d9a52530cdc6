"""Host memory as the device, in files in memory that another process can map as well.

Owns: those files, and which of them an address lies in. Must not: know who maps them,
or for what (runtime/porter/).

Pages of such a file are small ones nearly everywhere (shmem_enabled is "never" by
default). Forwards, reads and hashes took the same time there as in huge pages of
private memory, and the first touch of a page less.
"""

import mmap
import os
import weakref
from collections.abc import Callable
from dataclasses import dataclass

import torch

from loader.errors import DeviceFull
from loader.memory import HostMemory, shed_shared
from loader.room import Array


@dataclass(frozen=True, slots=True)
class Ground:
    """A slab as another process may map it. `fd`: open for as long as `region` is
    there. `base`: its address here."""

    number: int
    fd: int
    nbytes: int
    base: int
    region: "weakref.ref[mmap.mmap]"


class SharedMemory(HostMemory):
    """See DeviceMemory. `came` and `went` are told of slabs."""

    def __init__(self) -> None:
        self.grounds: dict[int, Ground] = {}
        self.came: Callable[[Ground], None] = _nobody
        self.went: Callable[[int], None] = _nobody
        self._made = 0

    def slab(self, nbytes: int) -> torch.Tensor:
        """See DeviceMemory."""
        fd = -1
        try:
            fd = os.memfd_create("hotset-arena", os.MFD_CLOEXEC)
            os.ftruncate(fd, max(1, nbytes))
            region = mmap.mmap(fd, max(1, nbytes))
        except (OSError, OverflowError, ValueError) as error:
            if fd >= 0:
                os.close(fd)
            raise DeviceFull("the host has no memory left for this model") from error
        weakref.finalize(region, os.close, fd)
        slab = torch.frombuffer(region, dtype=torch.uint8)[:nbytes]
        self._made += 1
        ground = Ground(self._made, fd, nbytes, slab.data_ptr(), weakref.ref(region))
        self.grounds[ground.number] = ground
        self.came(ground)
        return slab

    def shed(self, unused: torch.Tensor) -> None:
        """See DeviceMemory."""
        shed_shared(unused)

    def gave_back(self) -> None:
        """See DeviceMemory. A slab that somebody still looks at goes the next time."""
        for ground in list(self.grounds.values()):
            if ground.region() is None:
                del self.grounds[ground.number]
                self.went(ground.number)

    def unwatched(self) -> None:
        """Nobody is told of slabs any more."""
        self.came, self.went = _nobody, _nobody

    def where(self, landing: Array) -> tuple[int, int] | None:
        """(number of the slab, start) of memory in one of them; None if it is not."""
        return self._place(landing.ctypes.data)

    def of(self, memory: torch.Tensor) -> tuple[int, int] | None:
        """As `where`."""
        return self._place(memory.data_ptr())

    def _place(self, address: int) -> tuple[int, int] | None:
        for ground in self.grounds.values():
            if ground.base <= address < ground.base + ground.nbytes:
                return ground.number, address - ground.base
        return None


def can_share() -> bool:
    """True if this machine, or its sandbox, has such files and gives pages back."""
    memory = SharedMemory()
    try:
        slab = memory.slab(mmap.PAGESIZE)
    except DeviceFull:
        return False
    slab.fill_(1)
    memory.shed(slab)
    return not bool(slab.any())


def _nobody(what: object) -> None:
    pass
