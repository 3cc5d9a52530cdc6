"""The disk tier as the porter has it: what the engine knows of it.

Owns: what was counted over all lives of the porter. Must not: read or write a file: the
folder is one for both (loader/spool.py).
"""

from loader.spool import Spool
from loader.tier import Tally
from runtime.porter.messages import Disk


class Disks:
    """`spool`: the engine's own, None without a disk tier."""

    def __init__(self, spool: Spool | None) -> None:
        self._spool = spool
        self._past, self._present = Tally(), Tally()

    def told(self, report: Disk) -> None:
        """What has changed since the last time."""
        if self._spool is None:
            return
        for digest, size in report.files:
            self._spool.heard(digest, size)
        self._present = Tally(*report.tally)
        self._spool.counted(self._past + self._present, report.up)

    def ended(self) -> None:
        """That life counts no further."""
        self._past, self._present = self._past + self._present, Tally()
        if self._spool is not None:
            self._spool.counted(self._past, up=True)
