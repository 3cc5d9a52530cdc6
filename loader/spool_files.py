"""Files of the disk tier: whole under their names, or not there.

Owns: writing one, and sweeping away what a writer that died has left. Must not: know
which files are wanted (loader/spool.py).

A part is locked for as long as it is written. The lock ends with its process, however
that ends, so a part that can be locked is nobody's: true for several servers in several
containers, where a process number in a name would say nothing.
"""

import fcntl
import os
import secrets
from collections.abc import Iterable
from pathlib import Path

from loader.digest import LARGEST

PART = ".part"


def write_whole(path: Path, parts: Iterable[memoryview], step: int = LARGEST) -> None:
    """Write beside the name, `step` bytes at a time at most, sync, rename. Raises
    OSError, and then left nothing."""
    part, fd = _part(path)
    try:
        for piece in parts:
            rest = piece
            while rest:
                rest = rest[os.write(fd, rest[:step]) :]
        os.fsync(fd)
        part.rename(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    finally:
        os.close(fd)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _part(path: Path) -> tuple[Path, int]:
    while True:
        part = path.with_name(f"{path.name}.{secrets.token_hex(8)}{PART}")
        fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX)
        if os.fstat(fd).st_nlink:
            return part, fd
        os.close(fd)  # swept between its making and its lock


def sweep(part: Path) -> None:
    """Remove a part that nobody writes any more."""
    try:
        fd = os.open(part, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        part.unlink(missing_ok=True)
    except OSError:
        pass  # somebody holds it: another server, alive
    finally:
        os.close(fd)
