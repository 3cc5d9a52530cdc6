"""Weights files that can be opened: of a local store, of the disk tier.

Owns: opening one, once, for all that is read of it (a file replaced meanwhile is never
mixed with the one that took its name), and its header. Must not: read the weights.
"""

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from loader.errors import ArtifactRefused, StoreDenied, StoreUnreachable
from loader.header import LENGTH_BYTES, MAX_HEADER
from loader.manifest import FileRef
from loader.spool import Spool

FIRST = 32 << 10
"""Bytes read at first: the header of a model with some 300 tensors is in there."""


@dataclass(slots=True)
class OpenFile:
    """A descriptor, closed with the block, and the file's beginning: all of the header,
    or what there is of it."""

    fd: int
    header: bytes

    def __enter__(self) -> "OpenFile":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self.fd)


def open_local(path: Path, file: FileRef) -> OpenFile:
    """A file of a local store. Raises what a remote store would."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ArtifactRefused(file.name, "is missing from the store") from error
    except PermissionError as error:
        raise StoreDenied("the model store refused the server's credentials") from error
    except OSError as error:
        raise StoreUnreachable("the model store could not be read") from error
    try:
        seen = os.fstat(fd)
        if not stat.S_ISREG(seen.st_mode):
            raise ArtifactRefused(file.name, "is missing from the store")
        if seen.st_size != file.size:
            raise ArtifactRefused(
                file.name,
                f"has {seen.st_size} bytes, model.json says {file.size}",
            )
        return OpenFile(fd, _header(fd))
    except OSError as error:
        os.close(fd)
        raise StoreUnreachable("the model store could not be read") from error
    except BaseException:
        os.close(fd)
        raise


def open_spooled(spool: Spool, digest: str, size: int) -> OpenFile | None:
    """A file of the disk tier; None if it is not there, or cannot be read."""
    fd = spool.open(digest, size)
    if fd is None:
        return None
    try:
        return OpenFile(fd, _header(fd))
    except OSError:
        os.close(fd)
        spool.discard(digest)
        return None


def _header(fd: int) -> bytes:
    first = os.pread(fd, FIRST, 0)
    length = LENGTH_BYTES + int.from_bytes(first[:LENGTH_BYTES], "little")
    if len(first) < length <= LENGTH_BYTES + MAX_HEADER:
        first += os.pread(fd, length - len(first), len(first))
    return first
