"""Which process runs on which cores.

Owns: that choice. Must not: start anything.

A front end is one thread that is always busy under load, and gRPC's own beside it; the
engine has its lanes. Left alone the kernel moves them all over each other.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from runtime.tree.child import Role


@dataclass(frozen=True, slots=True)
class Cores:
    """`engine` and one set for each front end; None: wherever the kernel likes."""

    engine: frozenset[int] | None = None
    fronts: Sequence[frozenset[int]] = ()

    @classmethod
    def of(cls, pin: bool, fronts: int, cores: Sequence[int] | None = None) -> "Cores":
        """The last core for each front end, the others for the engine. With fewer
        cores than processes nobody is pinned: two on one core would only wait."""
        if cores is None:
            cores = sorted(os.sched_getaffinity(0))
        if not pin or len(cores) <= fronts:
            return cls()
        own = cores[len(cores) - fronts :]
        rest = frozenset(cores[: len(cores) - fronts])
        return cls(rest, [frozenset({core}) for core in own])

    def of_child(self, role: Role, number: int) -> frozenset[int] | None:
        """The cores of an engine, or of the front end with this number."""
        if role == "engine":
            return self.engine
        return self.fronts[number] if self.fronts else None
