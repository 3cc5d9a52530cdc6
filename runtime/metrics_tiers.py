"""The metrics of the arena and of the tiers below the device.

Owns: their names, units and help. Must not: ask anybody; it is handed a snapshot.
"""

from collections.abc import Callable, Iterator

from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    Metric,
)

from loader.tier import Space, Tier, Tiers


def tier_metrics(tiers: Tiers) -> Iterator[Metric]:
    """Every family; those of the tiers are empty where there are none."""
    yield from _space(tiers.space)
    loads = CounterMetricFamily(
        "hotset_tier_loads",
        "Loads by the tier the bytes came from: host, disk or store.",
        labels=("tier",),
    )
    for tier in ("host", "disk", "store"):
        loads.add_metric((tier,), tiers.loads.get(tier, 0))
    yield loads
    yield GaugeMetricFamily(
        "hotset_porter_up",
        "1 while a process of its own brings weights in (--loader).",
        value=int(tiers.porter > 0),
    )
    yield from _below(tiers.below)
    yield from _prefetch(tiers.below)


def _space(space: Space) -> Iterator[Metric]:
    gauges = (
        ("hotset_arena_reserved_bytes", "Device bytes taken for slabs.",
         space.reserved),
        ("hotset_arena_held_bytes", "Device bytes of the slabs that models lie in.",
         space.held),
        ("hotset_arena_slabs", "Slabs.", space.slabs),
        ("hotset_arena_fragmentation_ratio",
         "Share of the slabs' free bytes outside the largest hole.",
         space.fragmentation),
    )  # fmt: skip
    for name, text, value in gauges:
        yield GaugeMetricFamily(name, text, value=value)
    yield CounterMetricFamily(
        "hotset_arena_compactions",
        "Times that models were moved to make one hole of several.",
        value=space.compactions,
    )
    yield CounterMetricFamily(
        "hotset_arena_moved_bytes", "Bytes moved for that.", value=space.moved_bytes
    )


def _below(tiers: tuple[Tier, ...]) -> Iterator[Metric]:
    gauges: tuple[tuple[str, str, Callable[[Tier], float]], ...] = (
        ("hotset_tier_capacity_bytes", "Bytes a tier may hold.", lambda t: t.capacity),
        ("hotset_tier_held_bytes", "Bytes a tier holds.", lambda t: t.held),
        ("hotset_tier_entries", "Files or models a tier holds.", lambda t: t.entries),
        ("hotset_tier_up", "0 while a tier takes nothing (a full or failing disk).",
         lambda t: t.up),
    )  # fmt: skip
    counters: tuple[tuple[str, str, Callable[[Tier], float]], ...] = (
        ("hotset_tier_hits", "Look-ups that found their bytes.", lambda t: t.hits),
        ("hotset_tier_misses", "Look-ups that did not.", lambda t: t.misses),
        ("hotset_tier_evictions", "Entries dropped for others.", lambda t: t.evictions),
        ("hotset_tier_failures", "Reads, writes and checks that failed.",
         lambda t: t.failures),
    )  # fmt: skip
    for name, text, read in gauges:
        gauge = GaugeMetricFamily(name, text, labels=("tier",))
        for tier in tiers:
            gauge.add_metric((tier.name,), read(tier))
        yield gauge
    for name, text, read in counters:
        counter = CounterMetricFamily(name, text, labels=("tier",))
        for tier in tiers:
            counter.add_metric((tier.name,), read(tier))
        yield counter


def _prefetch(tiers: tuple[Tier, ...]) -> Iterator[Metric]:
    """Of the guesses: how many were worth it."""
    for tier in tiers:
        if tier.name == "ahead":
            yield CounterMetricFamily(
                "hotset_prefetch_useful",
                "Models prefetched and then asked for.",
                value=tier.hits,
            )
            yield CounterMetricFamily(
                "hotset_prefetch_wasted",
                "Models prefetched and dropped unused.",
                value=tier.evictions,
            )
