"""Every metric: its name, its unit, its help, once.

Owns: the page that Prometheus reads. Must not: count (runtime/counts.py does, on the
loop), or ask the engine anything but for a snapshot.

Names follow Prometheus' own rules (unit in the name, `_total` on counters, seconds and
bytes). The hit ratio is hits by answers:

    sum(rate(hotset_requests_total{temperature="hit"}[5m]))
      / sum(rate(hotset_requests_total{outcome="ok"}[5m]))

Sums over models are exact in `hotset_requests_total`, not in `hotset_model_...`: a
model that loses its label takes its series with it.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)

from runtime.counts import Counts
from runtime.engine import Engine, Snapshot
from runtime.histogram import OTHER, Histogram, Words
from runtime.metrics_cache import cache_metrics
from runtime.metrics_compile import compile_metrics
from runtime.metrics_tiers import tier_metrics

T = TypeVar("T", bound=str)


class Metrics:
    """The page. `version`: of hotset, for hotset_info."""

    def __init__(self, counts: Counts, version: str) -> None:
        self._counts = counts
        self._version = version
        self.restarts: Mapping[str, int] | None = None
        """How often the engine's process was replaced, by reason; None: it is ours."""
        self._process = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=self._process)
        GCCollector(registry=self._process)

    async def exposition(self, engine: Engine, accept: str = "") -> tuple[bytes, str]:
        """The page of this moment; it takes milliseconds, so a thread makes it."""
        return await asyncio.to_thread(self.page, await engine.snapshot(), accept)

    def page(self, snapshot: Snapshot, accept: str = "") -> tuple[bytes, str]:
        """The page and its content type, in the format that `accept` asks for."""
        try:
            encode, content_type = choose_encoder(accept)
        except TypeError:
            # It compares the versions that a scraper names, words with numbers too.
            encode, content_type = choose_encoder("")
        return encode(_Families(lambda: self.collect(snapshot))), content_type

    def collect(self, snapshot: Snapshot) -> Iterator[Metric]:
        """Every family, with `snapshot` for what is and the counts for what was."""
        about = {"device": snapshot.device, "policy": snapshot.policy}
        about["version"] = self._version
        about["kernels"] = "onednn" if snapshot.onednn_from else "torch"
        yield InfoMetricFamily("hotset", "What runs here.", value=about)
        yield from self._requests()
        yield from self._work()
        yield from self._comings_and_goings()
        yield from cache_metrics(snapshot)
        yield from tier_metrics(snapshot.tiers)
        yield from compile_metrics(snapshot.compiled)
        yield from self._by_model(snapshot)
        if self.restarts is not None:
            yield _restarts(self.restarts)
        yield from self._process.collect()

    def _requests(self) -> Iterator[Metric]:
        counts = self._counts
        requests = CounterMetricFamily(
            "hotset_requests",
            "Predicts by outcome (ok, or why refused) and, if ok, by how they met "
            "their model: hit (resident), wait (being loaded), miss (loaded for it).",
            labels=("outcome", "temperature"),
        )
        for temperature, latency in counts.latency.items():
            requests.add_metric(("ok", temperature), latency.count)
        for outcome, count in counts.refusals.read().items():
            requests.add_metric((outcome, ""), count)
        yield requests
        yield _histograms(
            "hotset_request_duration_seconds",
            "From a predict's arrival to its answer, by temperature (hit is hot, wait "
            "and miss are cold).",
            "temperature",
            counts.latency,
        )

    def _work(self) -> Iterator[Metric]:
        counts = self._counts
        yield _histogram(
            "hotset_queue_wait_seconds",
            "How long requests waited for a lane, their model being resident.",
            counts.queue,
        )
        yield _histogram(
            "hotset_compute_duration_seconds", "One forward pass.", counts.compute
        )
        yield _histogram(
            "hotset_batch_requests",
            "Requests that one forward pass served.",
            counts.batch,
        )
        yield _counter("hotset_rows", "Rows answered (batch dimension).", counts.rows)

    def _comings_and_goings(self) -> Iterator[Metric]:
        counts = self._counts
        yield _counters(
            "hotset_loads",
            "Loads by outcome: ok, or the kind of failure.",
            "outcome",
            counts.loads,
        )
        yield _histogram(
            "hotset_load_duration_seconds",
            "From the wish to load until ready, the wait for room included.",
            counts.load,
        )
        yield _histograms(
            "hotset_load_phase_duration_seconds",
            "Phases of a load: fetch (store to memory), verify (digest), copy (to its "
            "place on the device).",
            "phase",
            counts.phases,
        )
        yield _counter("hotset_loaded_bytes", "Bytes brought in.", counts.loaded_bytes)
        yield _counters(
            "hotset_evictions",
            "Models taken out, by reason.",
            "reason",
            counts.evictions,
        )
        yield _counter("hotset_evicted_bytes", "Bytes given up.", counts.evicted_bytes)

    def _by_model(self, snapshot: Snapshot) -> Iterator[Metric]:
        counts = self._counts
        requests = CounterMetricFamily(
            "hotset_model_requests",
            "Predicts of the models with the most traffic; all others are _other.",
            labels=("model", "outcome", "temperature"),
        )
        latency = HistogramMetricFamily(
            "hotset_model_request_duration_seconds",
            "From arrival to answer, by model.",
            labels=("model",),
        )
        compute = CounterMetricFamily(
            "hotset_model_compute_seconds",
            "Time spent in forward passes, by model.",
            labels=("model",),
        )
        held = GaugeMetricFamily(
            "hotset_model_held_bytes", "Device bytes held, by model.", labels=("model",)
        )
        sizes = _sizes(snapshot, lambda name: counts.models.seen(name) is not None)
        for model, record in counts.models.all():
            for temperature, count in record.answered.items():
                requests.add_metric((model, "ok", temperature), count)
            requests.add_metric((model, "refused", ""), record.refused)
            latency.add_metric((model,), record.latency.buckets(), record.latency.total)
            compute.add_metric((model,), record.compute_s)
            held.add_metric((model,), sizes.get(model, 0))
        yield from (requests, latency, compute, held)


@dataclass(frozen=True, slots=True)
class _Families:
    """What an encoder asks of a registry: everything, once."""

    collect: Callable[[], Iterator[Metric]]


def _restarts(reasons: Mapping[str, int]) -> Metric:
    family = CounterMetricFamily(
        "hotset_engine_restarts",
        "Times the engine's process was replaced, by reason.",
        labels=("reason",),
    )
    for reason, count in reasons.items():
        family.add_metric((reason,), count)
    return family


def _sizes(snapshot: Snapshot, known: Callable[[str], bool]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for resident in snapshot.residents:
        name = resident.name if known(resident.name) else OTHER
        sizes[name] = sizes.get(name, 0) + resident.nbytes
    return sizes


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(name, text, value=value)


def _counters(name: str, text: str, label: str, words: Words) -> Metric:
    family = CounterMetricFamily(name, text, labels=(label,))
    for word, count in words.read().items():
        family.add_metric((word,), count)
    return family


def _histogram(name: str, text: str, histogram: Histogram) -> Metric:
    family = HistogramMetricFamily(name, text)
    family.add_metric((), histogram.buckets(), histogram.total)
    return family


def _histograms(
    name: str, text: str, label: str, histograms: Mapping[T, Histogram]
) -> Metric:
    family = HistogramMetricFamily(name, text, labels=(label,))
    for word, histogram in histograms.items():
        family.add_metric((word,), histogram.buckets(), histogram.total)
    return family
