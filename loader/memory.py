"""Memory for weights: slabs of a device, and host memory fit to copy from and to.

Owns: getting slabs, giving them back, moving bytes within them. Must not: know what the
bytes mean, who has which (loader/arena.py), or how much anybody may take.
"""

import contextlib
import ctypes
import mmap
from collections.abc import Sequence
from typing import Protocol

import torch

from loader.errors import DeviceFull
from loader.pages import pages
from loader.trades import Trade

BOUNCE = 16 << 20
"""Bytes of a GPU that a move goes through, so that it may overlap itself."""

SHED = 1 << 19
"""Bytes of small pages that are given back at a time. Where the kernel is not
interrupted (PREEMPT_NONE, a usual choice for servers) nobody else has the core
meanwhile: 12 MB of them took 15 ms."""

HUGE = 2 << 20
"""The same of huge pages: less than a whole one would split it, and who touches it next
would do so 512 times (14 ms for 16 MiB instead of 1.3)."""

_libc = ctypes.CDLL(None)


class DeviceMemory(Protocol):
    """Where slabs come from. `direct`: a CPU thread can write to a slab itself. `lazy`:
    a slab costs what is touched of it, and `shed` gives that back."""

    direct: bool
    lazy: bool

    @property
    def device(self) -> torch.device:
        """The device the slabs are on."""
        ...

    def slab(self, nbytes: int) -> torch.Tensor:
        """`nbytes` as uint8, uninitialised. Raises DeviceFull."""
        ...

    def move(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """Copy between slabs, or down within one; returns when it is done."""
        ...

    def shed(self, unused: torch.Tensor) -> None:
        """Part of a slab is not used for now: let others have it, where possible."""
        ...

    def swap(self, slab: torch.Tensor, trades: Sequence[Trade]) -> int:
        """Pages that nobody uses change places, one trade after the other; gives how
        many were made: fewer if they cannot, or the kernel has no room in its books."""
        ...

    def gave_back(self) -> None:
        """Slabs were dropped: let others have the memory."""
        ...


class HostMemory:
    """`--device cpu`: host RAM is the device. A slab costs what is touched of it."""

    device = torch.device("cpu")
    direct = True
    lazy = True

    def slab(self, nbytes: int) -> torch.Tensor:
        """See DeviceMemory."""
        return mapped(nbytes)

    def move(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """See DeviceMemory. memmove, unlike copy_, allows overlap in any direction."""
        ctypes.memmove(target.data_ptr(), source.data_ptr(), source.numel())

    def shed(self, unused: torch.Tensor) -> None:
        """See DeviceMemory. Whole pages only; they come back zeroed when touched.

        Both ends are cut to pages by us: madvise itself would round the length *up*,
        and zero the beginning of the model that lies behind.
        """
        _advise(unused, mmap.MADV_DONTNEED, HUGE)

    def swap(self, slab: torch.Tensor, trades: Sequence[Trade]) -> int:
        """See DeviceMemory."""
        return 0

    def gave_back(self) -> None:
        """See DeviceMemory. The mapping went with its last tensor."""


class PinnedMemory(HostMemory):
    """Host RAM that a GPU copies from and to by itself: for the host tier."""

    lazy = False

    def shed(self, unused: torch.Tensor) -> None:
        """See DeviceMemory. Locked pages stay."""

    def slab(self, nbytes: int) -> torch.Tensor:
        """See DeviceMemory. Slow (some GB a second): at start, in a thread."""
        slab = mapped(nbytes, faulted=True)
        pin(slab)
        return slab


class CudaMemory:
    """`--device cuda:N`: slabs of torch's allocator, one cudaMalloc each."""

    direct = False
    lazy = False

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def slab(self, nbytes: int) -> torch.Tensor:
        """See DeviceMemory."""
        try:
            return torch.empty(nbytes, dtype=torch.uint8, device=self.device)
        except torch.OutOfMemoryError as error:
            raise DeviceFull("the device has no memory left for this model") from error

    def move(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """See DeviceMemory. Each piece is out of the way before its place is written,
        because a stream keeps its order."""
        pieces = range(0, source.numel(), BOUNCE)
        bounce = torch.empty(
            min(BOUNCE, source.numel()), dtype=torch.uint8, device=self.device
        )
        for start in pieces:
            piece = source[start : start + BOUNCE]
            held = bounce[: piece.numel()]
            held.copy_(piece, non_blocking=True)
            target[start : start + piece.numel()].copy_(held, non_blocking=True)
        torch.cuda.current_stream(self.device).synchronize()

    def shed(self, unused: torch.Tensor) -> None:
        """See DeviceMemory. cudaFree takes whole allocations only."""

    def swap(self, slab: torch.Tensor, trades: Sequence[Trade]) -> int:
        """See DeviceMemory."""
        return 0

    def gave_back(self) -> None:
        """See DeviceMemory. Rare: a slab leaves when the budget shrinks, not with a
        model, so the device-wide wait in here is on nobody's way."""
        # On the way out of a process whose device was lost that must not be its end.
        with contextlib.suppress(torch.AcceleratorError):
            torch.cuda.empty_cache()


def shed_shared(unused: torch.Tensor) -> None:
    """As HostMemory.shed, of a file in memory: it has less from then on, for all."""
    _advise(unused, mmap.MADV_REMOVE, SHED)


def _advise(unused: torch.Tensor, advice: int, step: int) -> None:
    """Its whole pages, cut where addresses are multiples of `step`."""
    page, start = mmap.PAGESIZE, unused.data_ptr()
    first, last = -(-start // page) * page, (start + unused.numel()) // page * page
    while first < last:
        end = min(last, first - first % step + step)
        _libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(end - first), advice)
        first = end


def memory_on(device: torch.device) -> DeviceMemory:
    """The memory of a device."""
    return CudaMemory(device) if device.type == "cuda" else HostMemory()


def mapped(nbytes: int, faulted: bool = False) -> torch.Tensor:
    """`nbytes` of zeroed host memory, unmapped with the last tensor on it; `faulted`
    and errors: see `pages`."""
    region = pages(nbytes, faulted)
    return torch.frombuffer(region, dtype=torch.uint8)[:nbytes]


def pin(memory: torch.Tensor) -> None:
    """Lock host memory for copies to and from GPUs. `unpin` before it goes."""
    cudart = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    code = cudart.cudaHostRegister(memory.data_ptr(), memory.numel(), 0)
    if int(code) != 0:
        raise DeviceFull("the host's memory cannot be locked for the device")


def unpin(memory: torch.Tensor) -> None:
    """The end of `pin`."""
    cudart = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    cudart.cudaHostUnregister(memory.data_ptr())
