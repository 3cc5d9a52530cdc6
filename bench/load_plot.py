"""The picture of `bench.load`: milliseconds by size, a panel a source.

Owns: the plot. Must not: compute anything but where a point goes.
"""

from pathlib import Path
from statistics import median

from bench.load_peers import HOTSET, REFERENCES
from bench.load_results import SOURCES, Results


def plot(results: Results, path: Path) -> None:
    """Medians as lines, least to greatest as bars; both axes logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    sources = [s for s in SOURCES if any(where == s for where, _, _ in results.seen)]
    figure, panels = pyplot.subplots(
        1, len(sources), figsize=(5.5 * len(sources), 5), squeeze=False
    )
    names = list(dict.fromkeys(name for _, _, name in results.seen))
    for source, panel in zip(sources, panels[0], strict=True):
        for name in names:
            sizes = sorted(
                mb for where, mb, who in results.seen if (where, who) == (source, name)
            )
            if not sizes:
                continue
            times = [results.seen[source, mb, name].seconds for mb in sizes]
            middle = [median(each) * 1e3 for each in times]
            below = [m - min(t) * 1e3 for m, t in zip(middle, times, strict=True)]
            above = [max(t) * 1e3 - m for m, t in zip(middle, times, strict=True)]
            panel.errorbar(
                sizes,
                middle,
                yerr=[below, above],
                label=name,
                color=f"C{names.index(name)}",
                linewidth=2.5 if name == HOTSET else 1,
                linestyle=":" if name in REFERENCES else "-",
                marker="o",
                markersize=4,
                capsize=2,
            )
        panel.set(xscale="log", yscale="log", title=source, xlabel="MB")
        panel.grid(alpha=0.3, which="both")
    panels[0][0].set_ylabel("milliseconds, median (least to greatest)")
    drawn = [panel.get_legend_handles_labels() for panel in panels[0]]
    legend = {
        label: handle
        for handles, labels in drawn
        for handle, label in zip(handles, labels, strict=True)
    }
    figure.legend(
        handles=list(legend.values()),
        labels=list(legend),
        loc="lower center",
        ncols=5,
    )
    figure.tight_layout(rect=(0, 0.09, 1, 1))
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
