"""Weights files that can be opened: of a local store, of the disk tier.

Owns: opening one, once, for all that is read of it (a file replaced meanwhile is never
mixed with the one that took its name), and its header. Must not: read the weights.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from loader.errors import ArtifactRefused, StoreDenied, StoreUnreachable
from loader.folder import opened
from loader.header import LENGTH_BYTES, MAX_HEADER
from loader.manifest import FileRef
from loader.spool import Spool

FIRST = 32 << 10
"""Bytes read at first: the header of a model with some 300 tensors is in there."""


@dataclass(slots=True)
class OpenFile:
    """A file to be opened within the block, and closed with it.

    Opening happens in a thread, and whoever waits for that may be cancelled: so what
    owns the descriptor is there before it. `header`: the file's beginning, all of the
    header in it, or what there is of it.
    """

    fd: int = -1
    header: bytes = b""

    def __enter__(self) -> "OpenFile":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def open_local(self, path: Path, file: FileRef, known: bytes = b"") -> None:
        """A file of a local store. `known`: what its header will turn out to be, which
        need not be read to know what goes where. Raises what a remote store would."""
        try:
            self.fd, seen = opened(path)
            if seen.st_size != file.size:
                raise ArtifactRefused(
                    file.name,
                    f"has {seen.st_size} bytes, model.json says {file.size}",
                )
            self.header = known or _header(self.fd)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ArtifactRefused(file.name, "is missing from the store") from error
        except PermissionError as error:
            raise StoreDenied(
                "the model store refused the server's credentials"
            ) from error
        except OSError as error:
            raise StoreUnreachable("the model store could not be read") from error

    def open_spooled(self, spool: Spool, digest: str, size: int) -> bool:
        """A file of the disk tier; False if it is not there, or cannot be read."""
        self.fd = spool.open(digest, size)
        if self.fd < 0:
            return False
        try:
            self.header = _header(self.fd)
        except OSError:
            spool.discard(digest)
            return False
        return True


def _header(fd: int) -> bytes:
    # The kernel may fetch the rest while the header is being read.
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_WILLNEED)
    first = os.pread(fd, FIRST, 0)
    length = LENGTH_BYTES + int.from_bytes(first[:LENGTH_BYTES], "little")
    if len(first) < length <= LENGTH_BYTES + MAX_HEADER:
        first += os.pread(fd, length - len(first), len(first))
    return first
