"""The files in memory that a host tier leaves to the next one (loader/estate.py).

Owns: making them. Must not: import torch: whoever outlives an engine is small.
"""

import os

from loader.arena import STRETCH

LIST_BYTES = 16 << 20
"""About 20,000 records of a kilobyte; the list is written anew when it is full."""


def estate_files(capacity: int) -> tuple[int, int]:
    """Descriptors of both: bytes, list. Nothing is taken before it is written."""
    found = []
    for name, nbytes in (("host", capacity * STRETCH), ("list", LIST_BYTES)):
        fd = os.memfd_create(f"hotset-{name}", os.MFD_CLOEXEC)
        os.ftruncate(fd, nbytes)
        found.append(fd)
    return found[0], found[1]
