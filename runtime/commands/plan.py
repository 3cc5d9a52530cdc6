"""hotset plan: how much memory buys how much latency, on a recorded trace.

Owns: the command's options and its table. Must not: simulate (runtime/capacity.py).
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from eviction.policies import DEFAULT, POLICIES
from eviction.simulate.trace import Trace
from runtime.capacity import (
    GIB,
    Point,
    advise,
    ladder,
    lru_ladder,
    survey,
    worth_of_a_gib,
)
from runtime.commands.traces import (
    Bandwidth,
    ReloadLatency,
    Sizes,
    Speed,
    TraceFile,
    Workers,
    bar,
    open_trace,
    written_to,
)
from runtime.simulate_report import plot

Target = Annotated[
    float,
    typer.Option(help="Seconds that 99 % of the requests may wait at most.", min=0.0),
]
Policy = Annotated[str, typer.Option(help="The eviction policy.")]
Out = Annotated[Path | None, typer.Option(help="A folder for plan.json and plan.png.")]


def plan(
    trace: TraceFile,
    sizes: Sizes = None,
    p99: Target = 0.5,
    policy: Policy = DEFAULT,
    speed: Speed = 1.0,
    out: Out = None,
    reload_latency: ReloadLatency = 0.25,
    bandwidth: Bandwidth = 2.0,
    workers: Workers = 0,
) -> None:
    """Say how much memory your traffic needs, and what one more GiB is worth.

    Simulates the server on a recorded trace at a ladder of budgets: loads take their
    time, requests queue behind them, at most four loads run at once. Ends with one
    sentence: how many bytes buy the wait you asked for. Beside it stands what LRU would
    load at that budget, for all sizes at once in one pass.

        hotset plan requests.csv --sizes sizes.csv --p99 0.5
    """
    if policy not in POLICIES:
        raise typer.BadParameter(f"no policy {policy!r}: {', '.join(POLICIES)}")
    console = Console()
    recorded, _ = open_trace(console, trace, sizes, reload_latency, bandwidth)
    budgets = ladder(recorded)
    lru = lru_ladder(recorded, budgets)
    with bar(console, "simulating budgets", len(budgets)) as step:
        points = survey(
            recorded, policy, budgets, speed, workers or None, lambda _: step("")
        )
    hours = max(recorded.times[-1] / speed / 3600.0, 1e-9)
    worth = worth_of_a_gib(points, hours)
    advice = advise(points, p99, hours)
    console.print(_table(points, worth, lru, advice.chosen))
    console.print(advice.sentence, highlight=False)
    if out is not None:
        _write(out, recorded, points, worth, lru, advice.sentence)


HEADINGS = (
    "budget",
    "loads",
    "loading",
    "LRU's",
    "mean wait",
    "p50 wait",
    "p99 wait",
    "+1 GiB saves",
)


def _table(
    points: Sequence[Point],
    worth: Sequence[float],
    lru: Sequence[float],
    chosen: Point | None,
) -> Table:
    table = Table()
    for heading in HEADINGS:
        table.add_column(heading, justify="right")
    for point, gib, lru_s in zip(points, worth, lru, strict=True):
        table.add_row(
            f"{point.budget / GIB:.2f} GiB",
            f"{point.loads:,}",
            f"{point.loading_s:,.0f} s",
            f"{lru_s:,.0f} s",
            f"{point.mean_s * 1e3:,.1f} ms",
            f"{point.p50_s:.3f} s",
            f"{point.p99_s:.3f} s",
            f"{gib:,.1f} s/h",
            style="bold" if point is chosen else "",
        )
    return table


def _write(
    folder: Path,
    trace: Trace,
    points: Sequence[Point],
    worth: Sequence[float],
    lru: Sequence[float],
    sentence: str,
) -> None:
    rows = [
        {**asdict(point), "gib_saves_s_per_hour": gib, "lru_loading_s": lru_s}
        for point, gib, lru_s in zip(points, worth, lru, strict=True)
    ]
    gib = [point.budget / GIB for point in points]
    image = plot(
        {
            "mean wait": (gib, [point.mean_s for point in points]),
            "p99 wait": (gib, [point.p99_s for point in points]),
        },
        "cache, GiB",
        "seconds",
    )
    said = {"trace": trace.name, "sentence": sentence, "points": rows}
    with written_to(folder):
        (folder / "plan.json").write_text(json.dumps(said, indent=1) + "\n")
        if image is not None:
            (folder / "plan.png").write_bytes(image)
