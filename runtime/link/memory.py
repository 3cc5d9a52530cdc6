"""Shared memory with one writer, who alone says what lies where.

Owns: the mapping, and which stretches of it are in use. Must not: know tensors, or wait
for room: when there is none, `take` says so and the bytes go through the socket.

The file is anonymous (memfd): it is gone when the last process that has it is, however
that ends. Memory is taken when it is first written, and given back when nothing lies in
the region any more.
"""

import mmap
import os
import struct
from bisect import bisect_left, insort

ALIGNED = 64
"""Of every stretch: a cache line, and enough for any dtype."""

KEPT = 8 << 20
"""Bytes touched that an empty region keeps."""

NOTE = struct.Struct("<Q")
"""At the very beginning: the writer's note to whoever finds the region after it."""


def anonymous(name: str, nbytes: int) -> int:
    """A new file in memory; its descriptor, which is not inherited by itself."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC)
    os.ftruncate(fd, nbytes)
    return fd


class Region:
    """A mapping of such a file. Takes over `fd`."""

    def __init__(self, fd: int) -> None:
        self.nbytes = os.fstat(fd).st_size
        try:
            self._mapped = mmap.mmap(fd, self.nbytes)
        finally:
            os.close(fd)
        self.bytes = memoryview(self._mapped)
        self._holes = [(ALIGNED, self.nbytes)]
        self._taken: dict[int, int] = {}
        self._touched = 0

    def close(self) -> bool:
        """Let go of it; False: somebody still looks at it. Twice does no harm."""
        try:
            self.bytes.release()
            self._mapped.close()
        except BufferError:
            return False
        return True

    @property
    def held(self) -> int:
        """Bytes in use."""
        return sum(end - start for start, end in self._taken.items())

    @property
    def note(self) -> int:
        """What the writer noted; there at once, and still there when it died."""
        (value,) = NOTE.unpack_from(self.bytes)
        return int(value)

    @note.setter
    def note(self, value: int) -> None:
        NOTE.pack_into(self.bytes, 0, value)

    def take(self, nbytes: int) -> int | None:
        """The start of the lowest stretch of `nbytes`; None without room."""
        need = -(-nbytes // ALIGNED) * ALIGNED
        for index, (start, end) in enumerate(self._holes):
            if end - start >= need:
                if end - start == need:
                    del self._holes[index]
                else:
                    self._holes[index] = (start + need, end)
                self._taken[start] = start + need
                self._touched = max(self._touched, start + need)
                return start
        return None

    def put(self, data: "memoryview | bytes") -> tuple[int, int] | None:
        """Write bytes somewhere: (start, length), or None without room."""
        start = self.take(len(data))
        if start is None:
            return None
        self.bytes[start : start + len(data)] = data
        return start, len(data)

    def free(self, start: int) -> None:
        """Nobody reads that stretch any more. KeyError: it was not in use."""
        end = self._taken.pop(start)
        at = bisect_left(self._holes, (start, end))
        if at < len(self._holes) and self._holes[at][0] == end:
            end = self._holes.pop(at)[1]
        if at and self._holes[at - 1][1] == start:
            start = self._holes.pop(at - 1)[0]
        insort(self._holes, (start, end))
        if not self._taken and self._touched > KEPT:
            self._give_back()

    def _give_back(self) -> None:
        """Its pages go from every process, but for the first, with the note."""
        page = mmap.PAGESIZE
        self._mapped.madvise(mmap.MADV_REMOVE, page, self.nbytes - page)
        self._touched = 0

    def look(self, start: int, nbytes: int) -> memoryview:
        """Bytes the other side has put there. ValueError: there is no such place."""
        if not (ALIGNED <= start <= start + nbytes <= self.nbytes):
            raise ValueError("a message points outside its shared memory")
        return self.bytes[start : start + nbytes]
