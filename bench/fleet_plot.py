"""The plot of bench.fleet: throughput, and how long hits and cold requests take.

Owns: colours and panes. Must not: compute anything but medians that are there already.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from bench.client import quantile
from bench.fleet_results import Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LABELS = {
    "hotset-zttp": "hotset,\nzttp",
    "hotset-envoy": "hotset,\nEnvoy",
    "hotset-grpcio": "hotset,\ngrpcio",
    "hotset-host": "hotset,\nhost tier",
    "diy": "do it yourself,\ntorch.load",
    "diy-safetensors": "do it yourself,\nsafetensors",
    "ray": "Ray Serve\nmultiplex",
}
COLOURS = {
    "hotset-zttp": "#7a1f5c",
    "hotset-envoy": "#c1272d",
    "hotset-grpcio": "#e8833a",
    "hotset-host": "#8a2f2f",
    "diy": "#4a6fa5",
    "diy-safetensors": "#93b1d6",
    "ray": "#9a9a9a",
}
SHARES = [0.01 * step for step in range(1, 100)] + [0.995, 0.999]


def draw(results: Results, path: Path) -> None:
    """Two panes: a bar a contender; the share of requests answered by a time."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, (rates, waits) = pyplot.subplots(1, 2, figsize=(13, 5))
    _bars(rates, results)
    _curves(waits, results)
    for pane in (rates, waits):
        pane.grid(True, axis="both" if pane is waits else "y", alpha=0.25)
        pane.set_axisbelow(True)
        for side in ("top", "right"):
            pane.spines[side].set_visible(False)
    figure.suptitle(
        "200 models of 5.07 MB, room for 40, Zipf 0.9, 8 requests under way",
        fontsize=12,
    )
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _bars(pane: "Axes", results: Results) -> None:
    names = results.names()
    for place, name in enumerate(names):
        value = results.median(name, "rps")
        pane.bar(place, value, color=COLOURS.get(name, "#555555"), width=0.65)
        each = [seen.rate for seen in results.rounds[name]]
        pane.plot([place] * len(each), each, "k.", markersize=4)
        ratio = results.median(name, "hit_ratio")
        said = f"{value:,.0f}\n{ratio:.0%} hits"
        pane.text(place, max(each) * 1.02, said, ha="center", va="bottom", fontsize=9)
    pane.set_xticks(range(len(names)), [LABELS.get(n, n) for n in names], fontsize=9)
    pane.set_title("requests a second (more is better)", fontsize=11)
    pane.set_ylim(top=pane.get_ylim()[1] * 1.12)


def _curves(pane: "Axes", results: Results) -> None:
    for name in results.names():
        cold = sorted(v for seen in results.rounds[name] for v in seen.cold)
        values = [quantile(cold, share) * 1e3 for share in SHARES]
        label = LABELS.get(name, name).replace("\n", " ")
        pane.plot(
            values, SHARES, color=COLOURS.get(name, "#555555"), label=label, linewidth=2
        )
    pane.set_xscale("log")
    pane.xaxis.set_major_formatter("{x:g}")
    pane.set_xlabel("ms")
    pane.set_ylim(0, 1)
    pane.set_title("cold requests answered within (left is better)", fontsize=11)
    pane.legend(frameon=False, fontsize=9)
