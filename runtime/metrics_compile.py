"""The metrics of compiled graphs.

Owns: their names, units and help. Must not: ask anybody; it is handed a snapshot.
"""

from collections.abc import Iterator, Sequence

from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    Metric,
)

from runtime.engine import CompiledGraph
from runtime.histogram import Words


def compile_metrics(graphs: Sequence[CompiledGraph]) -> Iterator[Metric]:
    """Every family; all zero where nothing is compiled or recorded."""
    states = Words("compiling", "compiled", "recorded", "refused", "retired")
    for graph in graphs:
        states.add(graph.state)
    family = GaugeMetricFamily(
        "hotset_compiled_graphs",
        "Graphs by what became of compiling or recording them: refused and retired "
        "ones run eagerly; /hotset/status has the reasons.",
        labels=("state",),
    )
    for state, count in states.read().items():
        family.add_metric((state,), count)
    yield family
    yield CounterMetricFamily(
        "hotset_compile_seconds",
        "Time spent compiling, trials included.",
        value=sum(graph.seconds for graph in graphs),
    )
    calls = CounterMetricFamily(
        "hotset_compiled_calls",
        "Forward passes of compiled or recorded graphs, by what ran: the code, or "
        "(sizes that it was not compiled for, a failure) the eager graph.",
        labels=("ran",),
    )
    calls.add_metric(("code",), sum(graph.calls for graph in graphs))
    calls.add_metric(("eager",), sum(graph.declined for graph in graphs))
    yield calls
