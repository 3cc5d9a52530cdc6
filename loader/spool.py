"""The disk tier: files of the store kept on a local disk, named by their SHA-256.

Owns: the folder, its own limit and its own order of leaving (least recently used
first, over restarts too: the file's mtime says when it was used). Must not: vouch for
what it gives; whoever reads checks the digest, and tells `discard` if it is wrong.

A file is written beside its name, synced, and renamed: under its name it is whole, and
never changes again. So several servers may share one folder. Files are read, never
mapped: a disk that fails costs an error, not the process.

Whatever the disk does, loads go on without it: a failed write pauses writing for a
while, a failed read is a miss.
"""

import contextlib
import errno
import os
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import structlog

from loader.digest import LARGEST
from loader.spool_files import PART, sweep, write_whole
from loader.threads import stand_back
from loader.tier import Tally, Tier

log = structlog.get_logger()

PAUSE_S = 60.0
"""Nothing is written for so long after a failure: what is full stays full a while."""

RESCAN_S = 60.0
"""Others write into the folder too: it is listed anew that often, when we write."""

PENDING = 512 << 20
"""Bytes of files waiting to be written at most; what comes above is not kept."""

_NAME = re.compile(r"[0-9a-f]{64}")


class Spool:
    """Up to `capacity` bytes of files in `folder`, by digest.

    `changed` is told of each file that came or was used (its size) or went (0), in
    whichever thread. `step`: bytes that are written at a time, at most. Reads happen in
    the loader's threads and writes in one of our own, so the index has a lock, held for
    no longer than a look-up.
    """

    def __init__(
        self,
        folder: Path,
        capacity: int,
        changed: Callable[[str, int], None] = lambda digest, size: None,
        step: int = LARGEST,
    ) -> None:
        self.capacity = capacity
        self._changed = changed
        self._folder = folder
        self._step = step
        self._lock = threading.Lock()
        self._sizes: OrderedDict[str, int] = OrderedDict()
        self._held = 0
        self._pending = 0
        self._paused_until = 0.0
        self._scanned = 0.0
        self._tally, self._elsewhere = Tally(), Tally()
        self._others_up = True
        self._writer = ThreadPoolExecutor(1, "spool", stand_back)
        self._writer.submit(self._begin)

    # -- reading, in the loader's threads ---------------------------------------------

    def open(self, digest: str, size: int) -> int:
        """A descriptor of the file, the caller's to close; -1 if it is not here."""
        path = self._path(digest)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            if error.errno == errno.ENOENT:
                self._forget(digest)
            else:
                self._failed("read", error)
            self._tally.misses += 1
            return -1
        found = os.fstat(fd).st_size
        if found != size:
            # The manifest may lie as well as the disk: who comes with the right bytes
            # and another size writes the file anew (see `wants`).
            os.close(fd)
            self._used(digest, found)
            self._tally.misses += 1
            return -1
        self._tally.hits += 1
        self._used(digest, size)
        with contextlib.suppress(OSError):  # a read-only disk serves all the same
            os.utime(fd)
        return fd

    def read(self, digest: str, size: int) -> bytes | None:
        """A small file whole; None if it is not here or cannot be read."""
        fd = self.open(digest, size)
        if fd < 0:
            return None
        with os.fdopen(fd, "rb") as file:
            try:
                return file.read()
            except OSError as error:
                self._failed("read", error)
                return None

    def discard(self, digest: str) -> None:
        """What the file gave was wrong: it goes."""
        self._tally.failures += 1
        log.warning("a file of the disk tier is damaged, dropped", digest=digest)
        self._remove(digest)

    def holds(self, digest: str) -> bool:
        """True if a load would probably be served from here."""
        return digest in self._sizes

    # -- writing, behind the requests -------------------------------------------------

    def wants(self, digest: str, size: int) -> bool:
        """True if it is worth keeping the bytes of a file for `put`."""
        return (
            size <= self.capacity
            and self._sizes.get(digest) != size
            and self._pending + size <= PENDING
            and time.monotonic() >= self._paused_until
        )

    def put(self, digest: str, parts: Sequence[memoryview]) -> None:
        """Write a file whose digest was checked, soon and somewhere else."""
        size = sum(len(part) for part in parts)
        with self._lock:
            self._pending += size
        self._writer.submit(self._write, digest, parts, size)

    def heard(self, digest: str, size: int) -> None:
        """Another process that shares the folder with us says what `changed` does."""
        if size:
            self._used(digest, size)
        else:
            self._forget(digest)

    def counted(self, elsewhere: Tally, up: bool) -> None:
        """What it has counted so far, and whether it writes."""
        self._elsewhere, self._others_up = elsewhere, up

    def flush(self) -> None:
        """Return when what was put before is written (or was refused)."""
        self._writer.submit(lambda: None).result()

    def close(self) -> None:
        """End the thread; what is not being written yet is not written."""
        self._writer.shutdown(wait=True, cancel_futures=True)

    def tier(self) -> Tier:
        """How it stands."""
        t = self._tally + self._elsewhere
        return Tier(
            "disk", self.capacity, self._held, len(self._sizes),
            t.hits, t.misses, t.evictions, t.failures,
            time.monotonic() >= self._paused_until and self._others_up,
        )  # fmt: skip

    def _write(self, digest: str, parts: Iterable[memoryview], size: int) -> None:
        try:
            known = self._sizes.get(digest) == size
            if not known and time.monotonic() >= self._paused_until:
                self._folder.mkdir(parents=True, exist_ok=True)  # somebody tidied up
                self._make_room(size)
                write_whole(self._path(digest), parts, self._step)
                self._used(digest, size)
        except OSError as error:
            self._paused_until = time.monotonic() + PAUSE_S
            self._failed("write", error)
        finally:
            with self._lock:
                self._pending -= size

    def _make_room(self, size: int) -> None:
        if time.monotonic() - self._scanned > RESCAN_S:
            self._scan()
        while self._held + size > self.capacity and self._sizes:
            with self._lock:
                oldest = next(iter(self._sizes))
            self._remove(oldest)
            self._tally.evictions += 1

    # -- the folder -------------------------------------------------------------------

    def _path(self, digest: str) -> Path:
        return self._folder / digest

    def _begin(self) -> None:
        """What an earlier life left: whole files are ours, parts are nobody's."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            for part in self._folder.glob(f"*{PART}"):
                sweep(part)
            self._scan()
        except OSError as error:
            self._paused_until = time.monotonic() + PAUSE_S
            self._failed("open", error)

    def _scan(self) -> None:
        found = []
        with os.scandir(self._folder) as entries:
            for entry in entries:
                if _NAME.fullmatch(entry.name):
                    try:
                        seen = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue  # another server dropped it just now
                    found.append((seen.st_mtime_ns, entry.name, seen.st_size))
        with self._lock:
            self._sizes = OrderedDict((name, size) for _, name, size in sorted(found))
            self._held = sum(self._sizes.values())
        self._scanned = time.monotonic()

    def _used(self, digest: str, size: int) -> None:
        with self._lock:
            self._held += size - self._sizes.get(digest, 0)
            self._sizes[digest] = size
            self._sizes.move_to_end(digest)
        self._changed(digest, size)

    def _forget(self, digest: str) -> None:
        with self._lock:
            self._held -= self._sizes.pop(digest, 0)
        self._changed(digest, 0)

    def _remove(self, digest: str) -> None:
        self._forget(digest)
        try:
            self._path(digest).unlink(missing_ok=True)
        except OSError as error:
            self._failed("drop", error)

    def _failed(self, doing: str, error: OSError) -> None:
        self._tally.failures += 1
        log.warning("the disk tier fails", doing=doing, reason=error.strerror)
