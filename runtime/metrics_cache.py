"""The metrics of the cache as it is, as opposed to what was.

Owns: their names, units and help. Must not: ask anybody; it is handed a snapshot.
"""

from collections.abc import Iterator

from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    Metric,
)

from runtime.engine import Snapshot
from runtime.histogram import Words


def cache_metrics(snapshot: Snapshot) -> Iterator[Metric]:
    """Every family; those of the gauge are missing where there is none."""
    yield from _gauges(snapshot)
    yield CounterMetricFamily(
        "hotset_relapses",
        "Loads of models that had left less than their own load time before.",
        value=snapshot.relapses,
    )
    yield CounterMetricFamily(
        "hotset_deferred",
        "Loads put off, with a hint when to ask again, to break a spiral.",
        value=snapshot.deferred,
    )
    yield _residents(snapshot)


def _gauges(snapshot: Snapshot) -> Iterator[Metric]:
    gauges = (
        ("hotset_memory_budget_bytes", "Device bytes that models may hold now.",
         snapshot.capacity),
        ("hotset_memory_held_bytes", "Device bytes booked for models.", snapshot.held),
        ("hotset_memory_held_peak_bytes", "The most ever held.", snapshot.peak_held),
        ("hotset_waiting_requests", "Predicts waiting for a model to be resident.",
         snapshot.waiting),
        ("hotset_uptime_seconds", "Since the engine started.", snapshot.uptime_s),
        ("hotset_price_seconds_per_byte",
         "Seconds of waiting that a byte saves here, by the last eviction; 0 while all "
         "fits. A rank and not a price under --policy lru.", snapshot.price),
        ("hotset_spiral", "1 while models are wanted back as soon as they leave.",
         snapshot.spiral),
    )  # fmt: skip
    for name, text, value in gauges:
        yield GaugeMetricFamily(name, text, value=value)
    if snapshot.measured is not None:
        yield GaugeMetricFamily(
            "hotset_memory_measured_bytes",
            "Device bytes in use as measured, all processes.",
            value=snapshot.measured,
        )
        yield GaugeMetricFamily(
            "hotset_gauge_up",
            "1 while device memory is really measured, 0 while it is estimated.",
            value=snapshot.gauge_up,
        )


def _residents(snapshot: Snapshot) -> Metric:
    states = Words("READY", "LOADING", "UNLOADING", "UNAVAILABLE")
    for resident in snapshot.residents:
        states.add(resident.state)
    residents = GaugeMetricFamily(
        "hotset_residents", "Models in memory, or on their way.", labels=("state",)
    )
    for state, count in states.read().items():
        residents.add_metric((state,), count)
    return residents
