"""What a run of the policy benchmark found, as numbers, JSON and a picture.

Owns: figures against goals, the rows of the JSON, the plot. Must not: run anything.
"""

import os
import platform
import statistics
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from eviction.policies import POLICIES
from eviction.simulate.trace import Trace
from runtime.simulate import Cell

DEFAULT = "tournament"
OURS = tuple(POLICIES)


@dataclass(slots=True)
class Figure:
    """A measured number, what it should be, and whether it is."""

    value: float
    goal: str
    holds: bool


@dataclass(slots=True)
class Report:
    """What the run found."""

    figures: dict[str, Figure] = field(default_factory=dict)
    cells: list[dict[str, object]] = field(default_factory=list)
    waits: list[dict[str, object]] = field(default_factory=list)

    def at_most(self, name: str, value: float, goal: float) -> None:
        """A figure that should not exceed its goal."""
        self.figures[name] = Figure(round(value, 4), f"<= {goal:g}", value <= goal)

    def at_least(self, name: str, value: float, goal: float) -> None:
        """A figure that should reach its goal."""
        self.figures[name] = Figure(round(value, 4), f">= {goal:g}", value >= goal)


def as_row(family: str, seed: int, trace: Trace, cell: Cell) -> dict[str, object]:
    """A cell as it stands in the JSON."""
    misses = cell.misses
    return {
        "trace": family,
        "seed": seed,
        "share": cell.share,
        "policy": cell.policy,
        "missed_cost_s": round(cell.missed_cost, 3),
        "object_ratio": round(misses.object_ratio, 5) if misses else None,
        "byte_ratio": round(misses.byte_ratio, 5) if misses else None,
        "us_per_request": round(cell.took_s / max(len(trace), 1) * 1e6, 2),
    }


def cost_of(report: Report, family: str, policy: str, share: float) -> dict[int, float]:
    """Missed cost by seed."""
    return {
        int(str(row["seed"])): float(str(row["missed_cost_s"]))
        for row in report.cells
        if (row["trace"], row["policy"], row["share"]) == (family, policy, share)
    }


def relative(
    report: Report, family: str, policy: str, share: float, to: str = "lru"
) -> list[float]:
    """Missed cost relative to another policy's, by seed."""
    ours, other = (cost_of(report, family, p, share) for p in (policy, to))
    return [ours[seed] / other[seed] for seed in ours]


def machine_facts() -> dict[str, object]:
    """What it ran on."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    return {
        "commit": commit,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def draw(
    report: Report, families: Sequence[str], shares: Sequence[float], path: Path
) -> None:
    """Cost relative to LRU: one panel a trace, one line a policy."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    columns = 4
    lines = -(-len(families) // columns)
    figure, axes = plt.subplots(
        lines,
        columns,
        figsize=(4 * columns, 3.4 * lines),
        squeeze=False,
        layout="constrained",
    )
    for axis, family in zip(axes.flat, families, strict=False):
        for policy in (*OURS, "belady-cost"):
            axis.plot(
                [100 * share for share in shares],
                [
                    statistics.mean(relative(report, family, policy, share))
                    for share in shares
                ],
                marker="o",
                markersize=3,
                linewidth=2.5 if policy == DEFAULT else 1.0,
                linestyle=":" if policy == "belady-cost" else "-",
                label=policy,
            )
        axis.set(title=family, xscale="log", ylim=(0, 1.3))
        axis.set_xticks([100 * share for share in shares])
        axis.set_xticklabels([f"{100 * share:g} %" for share in shares])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0][0].legend(fontsize=7)
    figure.supxlabel("cache, share of all bytes")
    figure.supylabel("seconds of loading, LRU = 1")
    figure.savefig(path, dpi=110)
