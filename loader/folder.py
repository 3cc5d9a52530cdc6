"""A folder as a store: plain files, read plainly, in threads.

Owns: which file an object is, and its bytes. Must not: know URLs or what the bytes
mean.

obstore can read folders too, but hands every 8 KiB to whichever of up to 512 threads is
idle: among loads of 25 MB a resident model's p99 was 9 to 15 ms because of them, on two
cores (python -m bench.storm), and every load paid for it.
"""

import asyncio
import os
import stat
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

from loader.errors import StoreUnreachable
from loader.part import PIECE, Changed, Missing, Part
from loader.threads import stand_back, to_its_end

READERS = 8
"""Threads, which come as they are needed: a file of a network's may keep one busy."""

READ = 1 << 19
"""Bytes that are read at a time: one read of 4 MiB into new memory kept the core for up
to 8 ms where the kernel is not interrupted."""


class LocalFile:
    """A file of the folder: open from `open` on, until `close` or its last reference.

    Opening happens in a thread, and whoever waits for that may be cancelled: so what
    owns the descriptor is there before it.
    """

    def __init__(self) -> None:
        self._fd = -1
        self.size = 0
        self.etag = ""

    def open(self, folder: Path, path: str) -> None:
        """Raises Missing, OSError."""
        self._fd, seen = opened(plain_file(folder, path))
        self.size = seen.st_size
        self.etag = f"{seen.st_ino:x}-{seen.st_mtime_ns:x}-{seen.st_size:x}"

    def read(self, at: int, nbytes: int) -> bytes:
        """What there was of that range at `open`, and still is. Raises OSError."""
        left = min(nbytes, max(0, self.size - at))
        parts = []
        while left:
            part = os.pread(self._fd, min(left, READ), at)
            if not part:
                break
            parts.append(part)
            at, left = at + len(part), left - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def close(self) -> None:
        """Nobody reads it any more."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        self.close()


class LocalPieces:
    """A range of a file, piece by piece."""

    def __init__(
        self, file: LocalFile, threads: Executor, start: int, end: int
    ) -> None:
        self._file = file
        self._threads = threads
        self._at = start
        self._end = end

    def __aiter__(self) -> "LocalPieces":
        return self

    async def __anext__(self) -> memoryview:
        wanted = min(PIECE, self._end - self._at)
        piece = b""
        if wanted > 0:
            try:
                piece = await to_its_end(
                    self._threads, self._file.read, self._at, wanted
                )
            except OSError as error:
                raise StoreUnreachable("the model store could not be read") from error
        if not piece:
            raise StopAsyncIteration
        self._at += len(piece)
        return memoryview(piece)

    async def aclose(self) -> None:
        """See Pieces."""
        self._at = self._end
        self._file.close()


class Folder:
    """The objects below `root`, which has no links on its own way."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._threads = ThreadPoolExecutor(READERS, "folder", stand_back)
        # Apart, and at the rank of all: a request waits for a manifest, and must not
        # stand behind ranges of weights for it.
        self._small = ThreadPoolExecutor(READERS, "manifests")

    def find(self, path: str) -> Path:
        """The object as a file. Raises Missing."""
        return plain_file(self.root, path)

    async def part(self, path: str, start: int, end: int, etag: str | None) -> Part:
        """Bytes `[start, end)`. Raises Missing, Changed, OSError."""
        file = LocalFile()
        try:
            await to_its_end(self._threads, file.open, self.root, path)
            if etag is not None and etag != file.etag:
                raise Changed
        except BaseException:
            file.close()
            raise
        pieces = LocalPieces(file, self._threads, start, end)
        return Part(pieces, file.size, file.etag)

    async def small(self, path: str, limit: int) -> bytes:
        """A small file whole. Raises Missing, OSError; ValueError above `limit`.

        Who waits may leave before the thread does, which closes what it has opened: a
        network's file system may keep it for as long as it likes.
        """

        def whole() -> bytes:
            file = LocalFile()
            try:
                file.open(self.root, path)
                if file.size > limit:
                    raise ValueError(f"has {file.size} bytes, limit {limit}")
                return file.read(0, file.size)
            finally:
                file.close()

        return await asyncio.get_running_loop().run_in_executor(self._small, whole)


def opened(path: Path) -> tuple[int, os.stat_result]:
    """A descriptor of a plain file, the caller's to close, and what it is. Raises
    OSError; FileNotFoundError if it is something else."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        seen = os.fstat(fd)
        if not stat.S_ISREG(seen.st_mode):
            raise FileNotFoundError
    except BaseException:
        os.close(fd)
        raise
    return fd, seen


def plain_file(folder: Path, path: str) -> Path:
    """The file at `path` below `folder`, links followed.

    Missing if that leads out of the folder, or to what is no plain file: a link to
    another tenant's file or a FIFO is nobody's model. (Links that stay inside are how
    Kubernetes mounts volumes.)
    """
    if _is_plain(folder, path):
        return folder / path
    found = Path(os.path.realpath(folder / path))
    if not found.is_relative_to(folder) or not found.is_file():
        raise Missing
    return found


def _is_plain(folder: Path, path: str) -> bool:
    """True if no link is on the way from the folder, which has none itself, to a plain
    file. Every load asks, on the event loop: three looks instead of all the way's."""
    spot, mode = str(folder), 0
    for name in path.split("/"):
        if name in ("", ".", ".."):
            return False
        spot = f"{spot}/{name}"
        try:
            mode = os.lstat(spot).st_mode
        except OSError:
            return False
        if stat.S_ISLNK(mode):
            return False
    return stat.S_ISREG(mode)
