"""A file's bytes on their way to the disk tier, while they are loaded.

Owns: gathering them. Must not: write (loader/spool.py), or keep what nobody wants.
"""

from collections.abc import Sequence

from loader.digest import FileRef
from loader.ranges import CHUNK
from loader.spool import Spool


class Keeping:
    """Of one load from the store. Without a disk tier that wants them, nothing."""

    def __init__(self, spool: Spool | None, file: FileRef) -> None:
        self._file = file
        self._spool = spool
        if spool is not None and not spool.wants(file.identity, file.size):
            self._spool = None
        self._ranges: dict[int, list[memoryview]] = {}

    def came(self, at: int, pieces: Sequence[memoryview]) -> None:
        """Pieces that were poured. A range that begins anew was damaged before.

        None at all, which is how a full range ends, are no beginning of the next one.
        """
        if self._spool is None or not pieces:
            return
        start = at - at % CHUNK
        if at == start:
            self._ranges[start] = []
        self._ranges[start] += pieces

    def put(self) -> None:
        """All came, and is right. Asked again: all loads that run at once were told
        that there is room."""
        file = self._file
        if self._spool is None or not self._spool.wants(file.identity, file.size):
            return
        ranges = self._ranges
        parts = [piece for start in sorted(ranges) for piece in ranges[start]]
        self._spool.put(file.identity, parts)
