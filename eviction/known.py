"""What `rate` and `lhd` remember of one model, in one record that both may share.

Owns: the fields. Must not: decide. One look-up a model instead of two is a third of
what the blend's density costs; each of the two writes its own fields only.
"""

from collections.abc import Sequence

NO_ROW: Sequence[float] = (0.0,) * 128
"""The hit densities of one never asked for."""


class Known:
    """`nbytes` is infinite until a load tells: no byte of it is worth anything yet."""

    __slots__ = (
        "kind",
        "last",
        "long",
        "mean",
        "middle",
        "nbytes",
        "resident",
        "row",
        "short",
    )

    def __init__(self) -> None:
        self.nbytes = float("inf")
        self.resident = False
        # eviction/rate.py: uses, each in units of the weight at its time
        self.short = self.middle = self.long = 0.0
        # eviction/lhd.py: request of the last use (0: none), mean interval, class, and
        # the densities of that class by age
        self.last = 0
        self.mean = 0.0
        self.kind = -1
        self.row = NO_ROW


STRANGER = Known()
"""Stands in for a model never heard of; nobody writes to it."""
