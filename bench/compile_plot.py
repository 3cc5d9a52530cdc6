"""The plot of bench.compile.

Owns: colours and panes. Must not: compute anything but medians that are there already.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from bench.compile_families import FAMILIES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OURS, CPU, EAGER = "#c1272d", "#e8833a", "#9a9a9a"


class Ratios(Protocol):
    """What is drawn of a family."""

    skipped: str

    def speedup(self, rows: int) -> float:
        """Of the forward alone."""
        ...

    def served(self) -> float:
        """Of requests a second."""
        ...

    def spent(self) -> float:
        """Of server CPU a request."""
        ...


def draw(found: Mapping[str, Ratios], path: Path) -> None:
    """Two panes: the forward alone by rows, and the server."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    seen = {name: each for name, each in found.items() if not each.skipped}
    labels = [family.label for family in FAMILIES if family.name in seen]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2), sharey=True)
    _bars(
        left,
        labels,
        {
            "1 row": [each.speedup(1) for each in seen.values()],
            "8 rows": [each.speedup(8) for each in seen.values()],
        },
        "the forward pass alone",
    )
    _bars(
        right,
        labels,
        {
            "requests a second": [each.served() for each in seen.values()],
            "server CPU a request": [each.spent() for each in seen.values()],
        },
        "over gRPC, 8 callers of one row",
    )
    left.set_ylabel("times better than eager")
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _bars(
    pane: "Axes", labels: list[str], bars: Mapping[str, list[float]], title: str
) -> None:
    for at, (name, values) in enumerate(bars.items()):
        places = [place + 0.38 * at - 0.19 for place in range(len(values))]
        drawn = pane.bar(places, values, 0.36, label=name, color=(OURS, CPU)[at])
        pane.bar_label(drawn, fmt="%.1fx", fontsize=8)
    pane.axhline(1.0, color=EAGER, linewidth=1)
    pane.set_xticks(range(len(labels)), labels, fontsize=8)
    pane.set_title(title, fontsize=10)
    pane.legend(fontsize=8)
    for side in ("top", "right"):
        pane.spines[side].set_visible(False)
