"""The plot of bench.prefetch: who still waits for the store, and how long.

Owns: colours and panes. Must not: compute anything.
"""

from collections.abc import Mapping
from pathlib import Path

KINDS = (("prefetch", "as --prefetch", "#c1272d"), ("host", "as host tier", "#4a6fa5"))


def draw(
    traces: Mapping[str, Mapping[str, float]], waits: Mapping[str, float], path: Path
) -> None:
    """`traces`: requests that wait, to those without that memory, by traffic; `waits`:
    mean cold wait in ms."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(
        1, 2, figsize=(11, 4), gridspec_kw={"width_ratios": [3, 1]}
    )
    for shift, (kind, label, colour) in enumerate(KINDS):
        places = [index + 0.4 * (shift - 0.5) for index in range(len(traces))]
        ratios = [one[kind] for one in traces.values()]
        left.bar(places, ratios, 0.38, label=label, color=colour)
    left.axhline(1, color="#555555", linewidth=1)
    left.set_xticks(range(len(traces)), list(traces))
    left.set_title(
        "requests that wait for the store, some memory more (less is better)"
    )
    left.set_ylabel("to without it")
    left.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=2)
    right.bar(list(waits), list(waits.values()), 0.6, color=["#9a9a9a", "#c1272d"])
    right.set_title("pipelines on an engine")
    right.set_ylabel("mean cold wait, ms")
    for pane in (left, right):
        for side in ("top", "right"):
            pane.spines[side].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
