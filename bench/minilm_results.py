"""What bench.minilm found: medians over rounds, ratios, the plot.

Owns: the goals. Must not: measure.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Literal

from bench.client import quantile
from bench.result import Figure, console

PEERS = ("kserve", "kserve-1-thread")
"""Ours is held against whichever is better, measure by measure."""
OURS, MKL = "hotset-zttp", "hotset-mkl"
"""The same server, but for the kernels of its linear layers."""
COLOURS = {
    "hotset-zttp": "#7a1014",
    "hotset-mkl": "#b9a5a5",
    "hotset-envoy": "#c1272d",
    "hotset-grpcio": "#e8833a",
    "kserve": "#9a9a9a",
    "kserve-1-thread": "#c4c4c4",
}
MEASURES: Mapping[str, Literal["lower", "higher"]] = {
    "rps": "higher",
    "p99_ms": "lower",
    "cpu_ms": "lower",
}


@dataclass(frozen=True, slots=True)
class Round:
    """One turn of one server. Seconds; latencies ascending."""

    rate: float
    latencies: list[float]
    cpu: float
    others: float


@dataclass(slots=True)
class Results:
    """Rounds by contender and callers."""

    rounds: dict[tuple[str, int], list[Round]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)
    loads: list[float] = field(default_factory=list)

    def add(self, name: str, callers: int, seen: Round) -> None:
        """One more round."""
        self.rounds.setdefault((name, callers), []).append(seen)

    def medians(self) -> dict[tuple[str, int], dict[str, float]]:
        """Of those that failed in no round."""
        return {
            key: {
                "rps": median(seen.rate for seen in rounds),
                "p50_ms": 1e3 * median(quantile(s.latencies, 0.5) for s in rounds),
                "p99_ms": 1e3 * median(quantile(s.latencies, 0.99) for s in rounds),
                "cpu_ms": 1e3 * median(seen.cpu for seen in rounds),
            }
            for key, rounds in self.rounds.items()
            if key[0] not in self.failed
        }


def figures(results: Results) -> dict[str, Figure]:
    """All medians, and ours against the peer's."""
    found = results.medians()
    told = {
        f"{name}_{measure}_c{callers}": Figure(value, measure.rpartition("_")[2])
        for (name, callers), values in found.items()
        for measure, value in values.items()
    }
    for (name, callers), ours in found.items():
        theirs = [found[p, callers] for p in PEERS if (p, callers) in found]
        if name in (*PEERS, MKL) or not theirs:
            continue
        for measure, better in MEASURES.items():
            best = (max if better == "higher" else min)(t[measure] for t in theirs)
            key = f"{name}_to_kserve_{measure.partition('_')[0]}_c{callers}"
            told[key] = Figure(ours[measure] / best, "x", 1.0, better)
    return {**told, **_kernels(found)}


def _kernels(found: Mapping[tuple[str, int], Mapping[str, float]]) -> dict[str, Figure]:
    """What the choice of kernels gains: nothing, on processors where MKL is as good."""
    return {
        f"onednn_to_mkl_{measure.partition('_')[0]}_c{callers}": Figure(
            found[OURS, callers][measure] / theirs[measure], "x"
        )
        for (name, callers), theirs in found.items()
        for measure in MEASURES
        if name == MKL and (OURS, callers) in found
    }


def details(results: Results) -> dict[str, object]:
    """For the JSON: every round, without its single latencies."""
    return {
        "rounds": [
            {
                "contender": name,
                "callers": callers,
                "rate": seen.rate,
                "p50": quantile(seen.latencies, 0.5),
                "p99": quantile(seen.latencies, 0.99),
                "cpu": seen.cpu,
                "others": seen.others,
                "requests": len(seen.latencies),
            }
            for (name, callers), rounds in results.rounds.items()
            for seen in rounds
        ],
        "skipped": results.skipped,
        "failed": results.failed,
        "memory": results.memory,
        "loads": results.loads,
    }


def show(results: Results) -> None:
    """Who was left out, and why."""
    for kind in (results.skipped, results.failed):
        for name, why in kind.items():
            console.print(f"{name}: {why}")


def draw(results: Results, path: Path) -> None:
    """Three panes: rate, p99, CPU; a bar a contender, by callers."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    found = results.medians()
    names = list(dict.fromkeys(name for name, _ in found))
    levels = sorted({callers for _, callers in found})
    panes = (("rps", "requests a second"), ("p99_ms", "p99, ms"),
             ("cpu_ms", "server CPU a request, ms"))  # fmt: skip
    width = 0.9 / len(names)
    figure, axes = pyplot.subplots(1, 3, figsize=(12, 3.8))
    for pane, (measure, title) in zip(axes, panes, strict=True):
        for at, name in enumerate(names):
            places = [place + width * at for place in range(len(levels))]
            values = [found[name, c][measure] for c in levels]
            drawn = pane.bar(
                places, values, width, label=name, color=COLOURS.get(name, "#555555")
            )
            pane.bar_label(drawn, fmt="%.3g", fontsize=7)
        pane.set_xticks(
            [place + 0.4 for place in range(len(levels))],
            [f"{c} callers" if c > 1 else "1 caller" for c in levels],
        )
        pane.set_title(title, fontsize=10)
        for side in ("top", "right"):
            pane.spines[side].set_visible(False)
    axes[0].legend(fontsize=8)
    figure.suptitle("fine-tunes of MiniLM-L6, 32 tokens a request", fontsize=11)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
