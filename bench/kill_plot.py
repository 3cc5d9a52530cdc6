"""The plot of bench.kill: every call's latency over time, and when the engine ended.

Owns: colours and panes. Must not: compute.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.kill import Course

COLOURS = {"right": "#4a6fa5", "wrong": "#c1272d"}
LOST = "#000000"
TITLES = {"killed": "kill -9", "hung": "SIGSTOP, --predict-timeout 2"}


def draw(courses: Sequence["Course"], path: Path) -> None:
    """A pane a course: a dot a call, a line an end."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, panes = pyplot.subplots(len(courses), 1, figsize=(12, 7))
    for pane, course in zip(panes, courses, strict=True):
        zero = min(call.began for call in course.answers)
        for outcome in sorted({call.outcome for call in course.answers}):
            calls = [call for call in course.answers if call.outcome == outcome]
            pane.scatter(
                [call.began - zero for call in calls],
                [(call.ended - call.began) * 1e3 for call in calls],
                s=3,
                color=COLOURS.get(outcome, LOST),
                label=f"{outcome} ({len(calls)})",
                rasterized=True,
            )
        for end in course.ends:
            pane.axvline(end - zero, color="#e8833a", linewidth=0.8)
        pane.set_yscale("log")
        pane.set_ylabel("latency of a call, ms")
        pane.set_title(f"{TITLES[course.name]} of the engine, {len(course.ends)} times")
        pane.legend(loc="upper right", frameon=False)
        pane.grid(True, alpha=0.25)
    panes[-1].set_xlabel("seconds")
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
