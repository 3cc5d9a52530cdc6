"""Who is told what happened: the one way from the cache and the engine to the metrics.

Owns: the vocabulary of events. Must not: count, label or log anything itself. The cache
and the engine hold an `Observer` and nothing else, so neither knows the name of a
metric. Every method is called on the event loop, returns at once and never raises.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

from loader.manifest import ModelSpec
from runtime.engine import Temperature


class Observer(Protocol):
    """Told of every event once, after it has happened. Times are in seconds."""

    def loaded(
        self,
        spec: ModelSpec,
        nbytes: int,
        phases: Mapping[str, float],
        seconds: float,
    ) -> None:
        """A model became resident; `seconds` from the wish to READY, room included."""
        ...

    def load_failed(self, spec: ModelSpec, kind: str, seconds: float) -> None:
        """A load ended in an error; `kind` is the name of its class."""
        ...

    def evicted(self, spec: ModelSpec, nbytes: int, reason: str) -> None:
        """A model's bytes are free again; `reason` is one of a few fixed words."""
        ...

    def answered(
        self, model: str, temperature: Temperature, seconds: float, rows: int
    ) -> None:
        """A predict was answered; `seconds` from its arrival to its answer."""
        ...

    def refused(self, model: str, outcome: str) -> None:
        """A predict was not answered. `model` is empty where no such model is known."""
        ...

    def queued(self, model: str, waits: Sequence[float]) -> None:
        """Requests have waited so long for their call, their model being there."""
        ...

    def computed(self, model: str, seconds: float, rows: int, requests: int) -> None:
        """One forward pass ended, which served `requests` requests of `rows` rows."""
        ...


class NullObserver:
    """Nobody listens: for tests, and for a cache without a server around it."""

    def loaded(
        self,
        spec: ModelSpec,
        nbytes: int,
        phases: Mapping[str, float],
        seconds: float,
    ) -> None:
        """Nothing."""

    def load_failed(self, spec: ModelSpec, kind: str, seconds: float) -> None:
        """Nothing."""

    def evicted(self, spec: ModelSpec, nbytes: int, reason: str) -> None:
        """Nothing."""

    def answered(
        self, model: str, temperature: Temperature, seconds: float, rows: int
    ) -> None:
        """Nothing."""

    def refused(self, model: str, outcome: str) -> None:
        """Nothing."""

    def queued(self, model: str, waits: Sequence[float]) -> None:
        """Nothing."""

    def computed(self, model: str, seconds: float, rows: int, requests: int) -> None:
        """Nothing."""
