"""Addresses over a file in memory, whose pages may change places.

    swap(there, behind, n)    what was seen at `behind` is seen at `there` from then on,
                              and the other way round: no byte is copied or cleared

Owns: which part of the file is seen at which address, and telling the kernel. Must not:
know who uses what, or tell other processes: each has a region of its own over the file,
and all must swap alike.

Every page of the file is seen exactly once, whatever is swapped (a permutation), so
nothing can be lost here or be two models'.
"""

import ctypes
import mmap
import os
from bisect import bisect_left, bisect_right
from collections.abc import Sequence

_MAP_POPULATE: int = getattr(mmap, "MAP_POPULATE", 0)
_MAP_FIXED = 0x10  # Python's mmap does not name it
_FAILED = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int),
    ctypes.c_int64,
)

Run = tuple[int, int]
"""(where it is seen, where it is in the file); up to where the next is seen."""


class Region:
    """The whole of `memory`, which maps the file `fd`; neither is kept here, and both
    must be there when pages are swapped. `runs`: how others see the file by now."""

    def __init__(
        self, fd: int, memory: mmap.mmap, runs: Sequence[Run] = ((0, 0),)
    ) -> None:
        self._fd = fd
        self.base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        self._end = len(memory)
        self._seen = [seen for seen, _ in runs]
        self._file = [file for _, file in runs]
        if len(runs) > 1:
            self._show(0, self._end)

    @property
    def runs(self) -> list[Run]:
        """How it is seen now."""
        return list(zip(self._seen, self._file, strict=True))

    def swap(self, there: int, behind: int, nbytes: int, now: bool = False) -> None:
        """Two ranges of whole pages that do not overlap change places. `now`: the pages
        that are seen `there` from now on are written to at once, so look them up.
        Raises OSError if the kernel has no room for it in its books; then nothing has
        changed."""
        before = [*self._seen], [*self._file]
        try:
            self._swap(there, behind, nbytes, _MAP_POPULATE if now else 0)
        except OSError:
            self._seen, self._file = before
            try:
                self._show_all((there, there + nbytes), (behind, behind + nbytes))
            except OSError:
                os.write(2, b"hotset: the kernel lost pages of the arena; it ends\n")
                os.abort()  # nobody knows any more what is seen where
            raise

    def _show_all(self, *ranges: tuple[int, int]) -> None:
        """What lies in these, whether a run begins there or not."""
        for start, end in ranges:
            self._cut(start)
            self._cut(end)
            self._show(start, end)
            self._join(end)
            self._join(start)

    def _swap(self, there: int, behind: int, nbytes: int, flags: int) -> None:
        first, second = sorted((there, behind))
        for at in (first, first + nbytes, second, second + nbytes):
            self._cut(at)
        low = slice(self._at(first), self._at(first + nbytes))
        high = slice(self._at(second), self._at(second + nbytes))
        upper = [seen - second + first for seen in self._seen[high]], self._file[high]
        lower = [seen - first + second for seen in self._seen[low]], self._file[low]
        self._seen[high], self._file[high] = lower
        self._seen[low], self._file[low] = upper
        self._show(there, there + nbytes, flags)
        self._show(behind, behind + nbytes)
        for at in (second + nbytes, second, first + nbytes, first):
            self._join(at)

    def _at(self, seen: int) -> int:
        """Which run begins there; the end is the one after the last."""
        return bisect_left(self._seen, seen)

    def _cut(self, at: int) -> None:
        """A run begins there."""
        index = bisect_right(self._seen, at) - 1
        if at < self._end and self._seen[index] != at:
            self._file.insert(index + 1, self._file[index] + at - self._seen[index])
            self._seen.insert(index + 1, at)

    def _join(self, at: int) -> None:
        """No run begins there that only goes on with the one before it."""
        index = self._at(at)
        if 0 < index < len(self._seen) and self._seen[index] == at:
            before = self._file[index] - self._file[index - 1]
            if before == at - self._seen[index - 1]:
                del self._seen[index], self._file[index]

    def _show(self, start: int, end: int, flags: int = 0) -> None:
        """Have the kernel show the runs of `[start, end)`, where runs begin."""
        for index in range(self._at(start), self._at(end)):
            seen, file = self._seen[index], self._file[index]
            until = self._seen[index + 1] if index + 1 < len(self._seen) else self._end
            found = _libc.mmap(
                self.base + seen,
                until - seen,
                mmap.PROT_READ | mmap.PROT_WRITE,
                mmap.MAP_SHARED | _MAP_FIXED | flags,
                self._fd,
                file,
            )
            if found == _FAILED:
                code = ctypes.get_errno()
                raise OSError(code, f"pages did not change places: {os.strerror(code)}")
