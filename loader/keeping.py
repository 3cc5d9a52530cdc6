"""A file's bytes on their way to the disk tier, while they are loaded.

Owns: gathering them. Must not: write (loader/spool.py), or keep what nobody wants.
"""

from collections.abc import Sequence

from loader.digest import FileRef
from loader.spool import Spool


class Keeping:
    """Of one load from the store. Without a disk tier that wants them, nothing."""

    def __init__(self, spool: Spool | None, file: FileRef) -> None:
        self._file = file
        self._spool = spool
        if spool is not None and not spool.wants(file.identity, file.size):
            self._spool = None
        self._pieces: dict[int, memoryview] = {}

    def came(self, at: int, pieces: Sequence[memoryview]) -> None:
        """Pieces that were poured, from `at` of the file on. What came for their places
        before was damaged."""
        if self._spool is None:
            return
        for piece in pieces:
            self._forget(at, at + len(piece))
            self._pieces[at] = piece
            at += len(piece)

    def put(self) -> None:
        """All came, and is right. Asked again: all loads that run at once were told
        that there is room."""
        file = self._file
        if self._spool is None or not self._spool.wants(file.identity, file.size):
            return
        parts = [self._pieces[at] for at in sorted(self._pieces)]
        self._spool.put(file.identity, parts)

    def _forget(self, start: int, end: int) -> None:
        for at, piece in list(self._pieces.items()):
            if start <= at < end:
                del self._pieces[at]
            elif at < start < at + len(piece):
                self._pieces[at] = piece[: start - at]
