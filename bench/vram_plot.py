"""The picture of `bench.vram`: rates by size, a panel a source, and the drift.

Owns: the plot. Must not: compute anything but where a point goes.
"""

from pathlib import Path
from statistics import median

from bench.load_peers import HOTSET
from bench.load_results import Results
from bench.vram_peers import CEILING, WARM
from bench.vram_results import SOURCES, rate
from bench.vram_swaps import Swapped


def plot(results: Results, swapped: Swapped | None, path: Path) -> None:
    """Medians as lines, slowest to quickest as bars; then used bytes by swaps."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 3, figsize=(16, 5))
    for source, panel in zip(SOURCES, panels, strict=False):
        names = dict.fromkeys(n for where, _, n in results.seen if where == source)
        for name in names:
            sizes = sorted(m for s, m, n in results.seen if (s, n) == (source, name))
            seconds = [results.seen[source, mb, name].seconds for mb in sizes]
            pairs = list(zip(sizes, seconds, strict=True))
            middle = [rate(mb, median(s)) for mb, s in pairs]
            below = [rate(mb, median(s)) - rate(mb, max(s)) for mb, s in pairs]
            above = [rate(mb, min(s)) - rate(mb, median(s)) for mb, s in pairs]
            panel.errorbar(
                sizes,
                middle,
                yerr=[below, above],
                label=name,
                linewidth=2.5 if name in (HOTSET, WARM) else 1,
                linestyle=":" if name == CEILING else "-",
                marker="o",
                markersize=4,
                capsize=2,
            )
        panel.set(xscale="log", title=f"from the {source}", xlabel="MB", ylabel="GB/s")
        panel.set_ylim(bottom=0)
        panel.grid(alpha=0.3)
        if names:
            panel.legend(fontsize="small")
    if swapped is not None:
        first = swapped.readings[0][1]
        done = [swaps for swaps, _ in swapped.readings]
        shares = [(used - first) / swapped.budget for _, used in swapped.readings]
        panels[2].plot(done, [100 * share for share in shares])
        panels[2].axhspan(-2, 2, alpha=0.15)
        panels[2].set(
            title=f"used on the device ({swapped.gauge})",
            xlabel="swaps",
            ylabel="% of the budget, from the start",
        )
        panels[2].grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
