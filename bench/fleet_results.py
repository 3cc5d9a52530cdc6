"""What bench.fleet found: medians over rounds, ratios, and which goals they reach.

Owns: the goals. Must not: measure. A cold request is one that did not find its model
resident: it caused the load, or waited for one that another had caused.
"""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median

from rich.table import Table

from bench.client import quantile
from bench.hit_results import ENVOY, GRPCIO, ZTTP
from bench.result import Figure, console

OURS = (ZTTP, ENVOY, GRPCIO)
HOST = "hotset-host"
"""Ours too, with a host tier: more memory of its own, so its ratios are told apart."""

GOALS: Mapping[str, float] = {"diy": 3.0, "ray": 8.0}
"""Our better front end's requests a second over theirs, at least."""

COLD_GOAL = 0.5
"""Our p99 of cold requests over theirs, at most."""


@dataclass(frozen=True, slots=True)
class Round:
    """One stream to one server. Seconds; `latencies` by how the model was met."""

    rate: float
    latencies: Mapping[str, list[float]]
    cpu: float
    others: float
    memory: int

    @property
    def hits(self) -> list[float]:
        """Of requests that found their model resident."""
        return self.latencies["hit"]

    @property
    def cold(self) -> list[float]:
        """Of all others."""
        return self.latencies["wait"] + self.latencies["miss"]

    @property
    def hit_ratio(self) -> float:
        """The share of requests that found their model resident."""
        return len(self.hits) / (len(self.hits) + len(self.cold))


MEASURES: Mapping[str, Callable[[Round], float]] = {
    "rps": lambda seen: seen.rate,
    "hit_ratio": lambda seen: seen.hit_ratio,
    "hit_p50": lambda seen: quantile(seen.hits, 0.5),
    "hit_p99": lambda seen: quantile(seen.hits, 0.99),
    "cold_p50": lambda seen: quantile(seen.cold, 0.5),
    "cold_p99": lambda seen: quantile(seen.cold, 0.99),
    "cpu": lambda seen: seen.cpu,
    "others": lambda seen: seen.others,
}


@dataclass(slots=True)
class Results:
    """Rounds by contender; number 0 began with nothing loaded."""

    cold_start: dict[str, Round] = field(default_factory=dict)
    rounds: dict[str, list[Round]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    loads: list[float] = field(default_factory=list)

    def add(self, name: str, number: int, seen: Round) -> None:
        """One more round."""
        if number:
            self.rounds.setdefault(name, []).append(seen)
        else:
            self.cold_start[name] = seen

    def names(self) -> list[str]:
        """Whose rows count."""
        return [name for name in self.rounds if name not in self.failed]

    def median(self, name: str, measure: str) -> float:
        """Over the rounds."""
        return median(MEASURES[measure](seen) for seen in self.rounds[name])

    def ratio(self, a: str, b: str, measure: str) -> float:
        """Median over median."""
        return self.median(a, measure) / self.median(b, measure)

    def better(self) -> str:
        """Our front end with the greater throughput."""
        ours = [name for name in OURS if name in self.names()]
        return max(ours, key=lambda name: self.median(name, "rps"), default="")


def figures(results: Results) -> dict[str, Figure]:
    """The goals first, then medians."""
    found: dict[str, Figure] = {}
    best, names = results.better(), results.names()
    peers = [name for name in names if name not in (*OURS, HOST)]
    for one, said in ((best, ""), (HOST, "host_tier_")):
        for peer in peers if one in names else ():
            rate = results.ratio(one, peer, "rps")
            cold = results.ratio(one, peer, "cold_p99")
            goal = GOALS.get(peer)
            found[f"{said}rps_to_{peer}"] = Figure(rate, "x", goal, "higher")
            found[f"{said}cold_p99_to_{peer}"] = Figure(cold, "x", goal and COLD_GOAL)
    for name in names:
        found[f"{name}_rps"] = Figure(
            results.median(name, "rps"), "1/s", None, "higher"
        )
        ratio = results.median(name, "hit_ratio")
        found[f"{name}_hit_ratio"] = Figure(ratio, "", None, "higher")
        cold = results.median(name, "cold_p99")
        found[f"{name}_cold_p99"] = Figure(cold * 1e3, "ms")
    found["failed_rows"] = Figure(len(results.failed), "", 0)
    return found


def show(results: Results) -> None:
    """Everybody's medians, as a table for people."""
    heads = ("", "rps", "hits", "hit p50, p99", "cold p50, p99", "CPU", "others")
    table = Table(*heads, title="bench.fleet, medians", title_justify="left")
    for name in results.names():
        said = {measure: results.median(name, measure) for measure in MEASURES}
        table.add_row(
            *(name, f"{said['rps']:,.0f}", f"{said['hit_ratio']:.0%}"),
            f"{said['hit_p50'] * 1e3:.1f}, {said['hit_p99'] * 1e3:.0f} ms",
            f"{said['cold_p50'] * 1e3:.1f}, {said['cold_p99'] * 1e3:.0f} ms",
            f"{said['cpu'] * 1e3:.2f} ms",
            f"{said['others']:.0%}",
        )
    console.print(table)
    for name, why in {**results.skipped, **results.failed}.items():
        word = "FAILED" if name in results.failed else "left out"
        console.print(f"{name}: {word}: {why}")


def details(results: Results, options: argparse.Namespace) -> dict[str, object]:
    """Every round, for the JSON."""
    return {
        "models": options.models,
        "room_for": options.room,
        "requests_a_round": options.requests,
        "seed": options.seed,
        "better_front_end": results.better(),
        "load_average_by_round": results.loads,
        "skipped": results.skipped,
        "failed": results.failed,
        "from_cold": {name: _told(seen) for name, seen in results.cold_start.items()},
        "rounds": {
            name: [_told(seen) for seen in rounds]
            for name, rounds in results.rounds.items()
        },
    }


def _told(seen: Round) -> dict[str, object]:
    milli = {"hit_p50", "hit_p99", "cold_p50", "cold_p99"}
    told: dict[str, object] = {}
    for name, take in MEASURES.items():
        value = take(seen)
        if name in milli:
            told[f"{name}_ms"] = round(value * 1e3, 3)
        elif name == "cpu":
            told["cpu_s_per_1000"] = round(value * 1e3, 4)
        else:
            told[name] = round(value, 4)
    counts = {met: len(each) for met, each in seen.latencies.items()}
    return {**told, "met": counts, "memory_pss_mb": round(seen.memory / 1e6)}
