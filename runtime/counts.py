"""What happened, counted: the `Observer` that the metrics are made from.

Owns: the counts, and which of them are kept by model. Must not: take a lock, a clock, a
metric's name (runtime/metrics.py), or a label from a client: a name that no model has
never gets a record, because only what was answered does.

Every method costs about a microsecond: they are on the way of every request.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from loader.manifest import ModelSpec
from runtime.engine import Temperature
from runtime.fame import Fame
from runtime.histogram import Histogram, Words

# From a resident model on an idle CPU (0.2 ms) to a cold one behind a slow store.
LATENCY = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5,
    1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
)  # fmt: skip
# By model only the coarse picture: these are multiplied by the number of labels.
LATENCY_BY_MODEL = (0.001, 0.0025, 0.01, 0.05, 0.25, 1.0, 5.0, 30.0)
BATCH = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)
TEMPERATURES: tuple[Temperature, ...] = ("hit", "wait", "miss")
PHASES = ("fetch", "verify", "copy")


@dataclass(slots=True)
class ModelCounts:
    """What is counted of one model with a label of its own, or of all others."""

    recent: float = 0.0
    answered: dict[Temperature, int] = field(
        default_factory=lambda: dict.fromkeys(TEMPERATURES, 0)
    )
    refused: int = 0
    latency: Histogram = field(default_factory=lambda: Histogram(LATENCY_BY_MODEL))
    compute_s: float = 0.0


class Counts:
    """An `Observer` that counts. `top`: models with a record of their own."""

    def __init__(self, top: int = 50) -> None:
        self.models = Fame(top, ModelCounts)
        self.latency = {t: Histogram(LATENCY) for t in TEMPERATURES}
        self.refusals = Words()
        self.queue = Histogram(LATENCY)
        self.compute = Histogram(LATENCY)
        self.batch = Histogram(BATCH)
        self.rows = 0
        self.loads = Words("ok")
        self.load = Histogram(LATENCY)
        self.phases = {phase: Histogram(LATENCY) for phase in PHASES}
        self.loaded_bytes = 0
        self.evictions = Words()
        self.evicted_bytes = 0

    def answered(
        self, model: str, temperature: Temperature, seconds: float, rows: int
    ) -> None:
        """A predict was answered."""
        self.latency[temperature].add(seconds)
        self.rows += rows
        record = self.models.of(model)
        record.answered[temperature] += 1
        record.latency.add(seconds)

    def refused(self, model: str, outcome: str) -> None:
        """A predict was not answered. Creates no label: anybody can be refused."""
        self.refusals.add(outcome)
        record = self.models.seen(model)
        if record is not None:
            record.refused += 1

    def queued(self, model: str, waits: Sequence[float]) -> None:
        """Requests waited for their call."""
        for seconds in waits:
            self.queue.add(seconds)

    def computed(self, model: str, seconds: float, rows: int, requests: int) -> None:
        """A forward pass ended."""
        self.compute.add(seconds)
        self.batch.add(requests)
        self.models.of(model).compute_s += seconds

    def loaded(
        self,
        spec: ModelSpec,
        nbytes: int,
        phases: Mapping[str, float],
        seconds: float,
    ) -> None:
        """A model became resident."""
        self.loads.add("ok")
        self.load.add(seconds)
        self.loaded_bytes += nbytes
        for phase, took in phases.items():
            histogram = self.phases.get(phase)
            if histogram is not None:
                histogram.add(took)

    def load_failed(self, spec: ModelSpec, kind: str, seconds: float) -> None:
        """A load ended in an error."""
        self.loads.add(kind)

    def evicted(self, spec: ModelSpec, nbytes: int, reason: str) -> None:
        """A model's bytes are free again."""
        self.evictions.add(reason)
        self.evicted_bytes += nbytes
