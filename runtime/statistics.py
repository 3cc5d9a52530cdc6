"""Counts by model, as the ModelStatistics call and `hotset ls` tell them.

Owns: the tallies, bounded. Must not: know metrics' names (runtime/metrics.py).
"""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from loader.manifest import ModelSpec
from runtime.engine import Duration, ModelStatistics, Temperature

REMEMBERED = 8192
"""Models whose counts are kept; who has not been asked lately is forgotten first."""


@dataclass(slots=True)
class Sum:
    """A growing Duration."""

    count: int = 0
    seconds: float = 0.0

    def add(self, seconds: float, count: int = 1) -> None:
        """So many more events that took so long together."""
        self.count += count
        self.seconds += seconds

    def read(self) -> Duration:
        """As of now."""
        return Duration(self.count, self.seconds)


class Tally:
    """One model version's counts."""

    __slots__ = (
        "compute", "fail", "hits", "last_use", "misses", "name", "queue", "recent",
        "success", "version",
    )  # fmt: skip

    def __init__(self, name: str, version: str) -> None:
        self.name, self.version = name, version
        self.success, self.fail = Sum(), Sum()
        self.queue, self.compute = Sum(), Sum()
        self.hits, self.misses = Sum(), Sum()
        self.last_use = 0.0
        self.recent = True

    def read(self, bytes_by_tier: Mapping[str, int]) -> ModelStatistics:
        """As of now."""
        return ModelStatistics(
            name=self.name,
            version=self.version,
            requests=self.success.count,
            executions=self.compute.count,
            last_use=self.last_use,
            success=self.success.read(),
            fail=self.fail.read(),
            queue=self.queue.read(),
            compute=self.compute.read(),
            hits=self.hits.read(),
            misses=self.misses.read(),
            bytes_by_tier=bytes_by_tier,
        )


class Statistics:
    """The tallies of all models met."""

    def __init__(self) -> None:
        self._tallies: dict[tuple[str, str], Tally] = {}
        self.temperatures: dict[Temperature, int] = {"hit": 0, "wait": 0, "miss": 0}

    def of(self, spec: ModelSpec) -> Tally:
        """The tally of a model version, new if need be."""
        key = (spec.name, spec.version)
        tally = self._tallies.get(key)
        if tally is None:
            if len(self._tallies) >= REMEMBERED:
                self._forget_one()
            tally = self._tallies[key] = Tally(*key)
        tally.recent = True
        return tally

    def _forget_one(self) -> None:
        """The first in line that was not asked for since it came to its place: nearly
        the least recently used, and a look-up need not move anything (CLOCK)."""
        while True:
            key = next(iter(self._tallies))
            tally = self._tallies.pop(key)
            if not tally.recent:
                return
            tally.recent = False
            self._tallies[key] = tally

    def all(self) -> Iterable[Tally]:
        """Every tally kept."""
        return list(self._tallies.values())

    def answered(self, tally: Tally, temperature: Temperature, seconds: float) -> None:
        """A predict of this model was answered."""
        self.temperatures[temperature] += 1
        tally.success.add(seconds)
        (tally.hits if temperature == "hit" else tally.misses).add(seconds)
        tally.last_use = time.time()
