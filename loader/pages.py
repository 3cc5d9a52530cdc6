"""Pages of host memory, as the kernel gives them.

Owns: asking for them. Must not: know what they are for, or need torch.
"""

import contextlib
import mmap

from loader.errors import DeviceFull

_POPULATE_WRITE = 23
"""MADV_POPULATE_WRITE (Linux 5.14); Python has no name for it yet."""

_FLAGS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000
"""MAP_NORESERVE (named from Python 3.13 on): addresses are taken, memory is not."""


def pages(nbytes: int, faulted: bool = False) -> mmap.mmap:
    """`nbytes` of zeroed memory in huge pages where the kernel has any, unmapped with
    the last view of it. `faulted`: all pages are there at once, because the first touch
    of a page costs more than copying to it (loading facts, 0.1). Raises DeviceFull."""
    try:
        # Private: pages of a shared mapping would not go when they are told to.
        region = mmap.mmap(-1, max(1, nbytes), flags=_FLAGS)
    except (OSError, OverflowError, ValueError) as error:
        raise DeviceFull("the host has no memory left for this model") from error
    for advice in (mmap.MADV_HUGEPAGE, *([_POPULATE_WRITE] if faulted else [])):
        # An older kernel refuses: pages then come one by one, at the first touch.
        with contextlib.suppress(OSError):
            region.madvise(advice)
    return region
