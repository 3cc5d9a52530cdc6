"""hotset plan: how much memory buys how much latency, on a recorded trace.

Owns: the command's options and its table. Must not: simulate (runtime/capacity.py).
"""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn
from rich.table import Table

from eviction.policies import DEFAULT, POLICIES
from eviction.simulate.trace import Trace
from runtime.capacity import GIB, Point, advise, ladder, survey, worth_of_a_gib
from runtime.commands import Failed
from runtime.commands.simulate import open_trace
from runtime.simulate_report import plot
from runtime.trace_file import Reload


def plan(
    trace: Annotated[
        Path,
        typer.Argument(
            help="Requests as CSV (.gz too) or Parquet: columns time and model;"
            " nbytes and reload_s if you have them. An access log of hotset is one."
        ),
    ],
    sizes: Annotated[
        Path | None,
        typer.Option(help="Sizes as CSV: model and nbytes (or size_mb, params_m)."),
    ] = None,
    p99: Annotated[
        float, typer.Option(help="Seconds that 99 % of the requests may wait at most.")
    ] = 0.5,
    policy: Annotated[str, typer.Option(help="The eviction policy.")] = DEFAULT,
    speed: Annotated[
        float, typer.Option(help="Run the trace's clock this much faster.")
    ] = 1.0,
    out: Annotated[
        Path | None, typer.Option(help="A folder for plan.json and plan.png.")
    ] = None,
    reload_latency: Annotated[
        float, typer.Option(help="Seconds a load takes at least, where not measured.")
    ] = 0.25,
    bandwidth: Annotated[
        float, typer.Option(help="GB/s a load moves, where not measured.")
    ] = 2.0,
    workers: Annotated[
        int, typer.Option(help="Processes; 0: one per core.", min=0)
    ] = 0,
) -> None:
    """Say how much memory your traffic needs, and what one more GiB is worth.

    Simulates the server on a recorded trace at a ladder of budgets: loads take their
    time, requests queue behind them, at most four loads run at once. Ends with one
    sentence: how many bytes buy the wait you asked for.

        hotset plan requests.csv --sizes sizes.csv --p99 0.5
    """
    if policy not in POLICIES:
        raise typer.BadParameter(f"no policy {policy!r}: {', '.join(POLICIES)}")
    if min(p99, reload_latency) < 0 or min(bandwidth, speed) <= 0:
        raise typer.BadParameter("times are not below 0; bandwidth and speed above 0")
    console = Console()
    recorded, notes = open_trace(trace, sizes, Reload(reload_latency, bandwidth * 1e9))
    for note in notes:
        console.print(f"note: {note}", style="dim", highlight=False)
    points = _survey(console, recorded, policy, speed, workers or os.cpu_count())
    hours = max(recorded.times[-1] / speed / 3600.0, 1e-9)
    worth = worth_of_a_gib(points, hours)
    advice = advise(points, p99, hours)
    console.print(_table(points, worth, advice.chosen))
    console.print(advice.sentence, highlight=False)
    if out is not None:
        _write(out, points, worth, advice.sentence)


def _survey(
    console: Console, trace: Trace, policy: str, speed: float, workers: int | None
) -> list[Point]:
    budgets = ladder(trace)
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn())
    with Progress(
        *columns,
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as progress:
        bar = progress.add_task("simulating budgets", total=len(budgets))
        return survey(
            trace, policy, budgets, speed, workers, lambda _: progress.advance(bar)
        )


def _table(
    points: Sequence[Point], worth: Sequence[float], chosen: Point | None
) -> Table:
    table = Table()
    for heading in (
        "budget",
        "loads",
        "loading",
        "mean wait",
        "p50 wait",
        "p99 wait",
        "+1 GiB saves",
    ):
        table.add_column(heading, justify="right")
    for point, gib in zip(points, worth, strict=True):
        table.add_row(
            f"{point.budget / GIB:.2f} GiB",
            f"{point.loads:,}",
            f"{point.loading_s:,.0f} s",
            f"{point.mean_s * 1e3:,.1f} ms",
            f"{point.p50_s:.3f} s",
            f"{point.p99_s:.3f} s",
            f"{gib:,.1f} s/h",
            style="bold" if point is chosen else "",
        )
    return table


def _write(
    folder: Path, points: Sequence[Point], worth: Sequence[float], sentence: str
) -> None:
    rows = [
        {**asdict(point), "gib_saves_s_per_hour": gib}
        for point, gib in zip(points, worth, strict=True)
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
    try:
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"sentence": sentence, "points": rows}, indent=1) + "\n"
        (folder / "plan.json").write_text(text)
        if image is not None:
            (folder / "plan.png").write_bytes(image)
    except OSError as error:
        raise Failed(f"Cannot write to {folder}: {error.strerror}") from error
