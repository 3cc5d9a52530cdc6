"""The plot of bench.hit: who answers how much, how fast, at what cost.

Owns: colours and panes. Must not: compute anything but medians that are there already.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from bench.hit_results import MEASURES, OURS, TRITON, Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LABELS = {
    "hotset-zttp": "hotset, zttp",
    "hotset-envoy": "hotset, Envoy",
    "hotset-grpcio": "hotset, grpcio",
    "grpc-aio": "bare grpc.aio",
    "grpc-sync": "bare grpc sync",
    "triton": "Triton 2.51",
    "triton-batch": "Triton 2.51, batching",
    "mlserver": "MLServer 1.7.1",
    "kserve": "KServe SDK 0.21",
}
COLOURS = {
    "hotset-zttp": "#7a1f5c",
    "hotset-envoy": "#c1272d",
    "hotset-grpcio": "#e8833a",
    "triton": "#3f7f3f",
    "triton-batch": "#8cbf6a",
    "grpc-aio": "#4a6fa5",
    "grpc-sync": "#93b1d6",
    "mlserver": "#8a6fae",
    "kserve": "#9a9a9a",
}
PANES = (
    ("rps", "requests a second", 1.0, "more is better"),
    ("cpu", "server CPU, ms a request", 1e3, "less is better"),
    ("p99", "p99, ms", 1e3, "less is better"),
)


def draw(results: Results, path: Path) -> None:
    """Three panes, a line a contender, every round as a faint point."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, panes = pyplot.subplots(1, len(PANES), figsize=(15, 5.2))
    for pane, (measure, title, scale, note) in zip(panes, PANES, strict=True):
        _lines(pane, results, measure, scale)
        pane.set_title(f"{title} ({note})", fontsize=11)
        pane.set_xlabel("requests under way (c)")
        _scale(pane, measure)
        for side in ("top", "right"):
            pane.spines[side].set_visible(False)
    panes[0].legend(fontsize=8.5, frameon=False, loc="upper left")
    figure.suptitle(
        "A hit: one row through an MLP 64-256-256-10, gRPC, client and server on the "
        "same cores",
        fontsize=12,
    )
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _scale(pane: "Axes", measure: str) -> None:
    """From zero, so that twice as high is twice as much; latencies span decades."""
    if measure == "p99":
        pane.set_yscale("log")
        pane.yaxis.set_major_formatter("{x:g}")
        pane.yaxis.set_minor_formatter("")
    else:
        pane.set_ylim(bottom=0)
        pane.yaxis.set_major_formatter("{x:,g}")
    pane.grid(True, which="both", axis="y", alpha=0.25)


def _lines(pane: "Axes", results: Results, measure: str, scale: float) -> None:
    levels = results.levels()
    places = range(len(levels))
    for name in results.names():
        colour = COLOURS.get(name, "#555555")
        strong = name in OURS or name == TRITON
        values = [results.median(name, c, measure) * scale for c in levels]
        pane.plot(
            places,
            values,
            "o-",
            color=colour,
            label=LABELS.get(name, name),
            linewidth=2.4 if strong else 1.3,
            markersize=5 if strong else 3.5,
            zorder=3 if strong else 2,
        )
        for place, c in enumerate(levels):
            each = [MEASURES[measure](seen) * scale for seen in results.rounds[name, c]]
            pane.plot([place] * len(each), each, ".", color=colour, alpha=0.3)
    pane.set_xticks(list(places), [str(c) for c in levels])
