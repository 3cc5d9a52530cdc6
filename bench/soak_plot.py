"""The plot of bench.soak: memory, descriptors and threads, and hits over time.

Owns: colours and panes. Must not: compute.
"""

from collections.abc import Sequence
from pathlib import Path

from bench.soak_course import Course
from bench.soak_results import hit_windows

COLOURS = {"grpcio": "#4a6fa5", "envoy": "#e8833a", "zttp": "#7a1f5c"}


def draw(courses: Sequence[Course], seconds: float, path: Path) -> None:
    """A pane a quantity, a colour a front end."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, panes = pyplot.subplots(3, 1, figsize=(11, 10), sharex=True)
    memory, counts, hits = panes
    for course in courses:
        seen = hit_windows(course, seconds)
        colour, name = COLOURS[course.name], course.name
        minutes = [look.at / 60 for look in course.looks]
        memory.plot(minutes, [x.own for x in course.looks], color=colour,
                    label=f"{name}, its own")  # fmt: skip
        memory.plot(minutes, [x.pss for x in course.looks], color=colour,
                    linewidth=0.7, alpha=0.6,
                    label=f"{name}, PSS with libraries")  # fmt: skip
        counts.plot(minutes, [x.descriptors for x in course.looks], color=colour,
                    linewidth=0.8, label=f"{name}, descriptors")  # fmt: skip
        counts.plot(minutes, [x.threads for x in course.looks], color=colour,
                    linestyle=":", label=f"{name}, threads")  # fmt: skip
        ends = [window["until_minute"] for window in seen]
        hits.plot(ends, [x["p50_ms"] for x in seen], "o-", color=colour,
                  markersize=3, label=f"{name}, p50")  # fmt: skip
        hits.plot(ends, [x["p99_ms"] for x in seen], "o:", color=colour,
                  markersize=3, label=f"{name}, p99")  # fmt: skip
    memory.set_ylabel("MiB")
    hits.set_ylabel("latency of a hit, ms, by window")
    hits.set_yscale("log")
    hits.set_xlabel("minutes")
    for pane in panes:
        pane.set_ylim(bottom=0 if pane is not hits else None)
        pane.legend(frameon=False, ncols=2)
        pane.grid(True, alpha=0.25)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
