"""hotset simulate: what each policy would have done on a recorded trace.

Owns: the command's options and its order of work. Must not: know how a replay works.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

from eviction.policies import POLICIES
from eviction.simulate.trace import Trace, TraceRefused
from runtime.commands import Failed
from runtime.simulate import CLAIRVOYANT, LP_REQUESTS, Cell, jobs_of, run
from runtime.simulate_report import as_json, picture, show, write_page
from runtime.trace_file import Reload, read_trace


def simulate(
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
    budget: Annotated[
        str, typer.Option(help="Cache sizes, as shares of all models together.")
    ] = "5%,10%,20%,40%",
    policy: Annotated[
        str,
        typer.Option(
            help="Policies by name, separated by commas. all: every one of ours, and"
            " the best that knowing the future could do. lp: the exact lower bound"
            " (minutes on long traces)."
        ),
    ] = "all",
    out: Annotated[
        Path | None,
        typer.Option(help="A folder for simulate.html, simulate.png, simulate.json."),
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
    """Replay a trace through every eviction policy and compare.

    The same policy objects that run in the server, over requests that are over: how
    many requests, bytes and seconds of loading each policy would have missed at each
    cache size, beside what a cache that knows the future could have done.

        hotset simulate requests.csv --sizes sizes.csv --out report
    """
    shares = parse_shares(budget)
    policies = parse_policies(policy)
    if reload_latency < 0 or bandwidth <= 0:
        raise typer.BadParameter("a latency is not below 0, a bandwidth above 0")
    console = Console()
    recorded, notes = open_trace(trace, sizes, Reload(reload_latency, bandwidth * 1e9))
    if policy == "all" and len(recorded) <= LP_REQUESTS:
        policies.append("lp")
    console.print(
        f"{len(recorded):,} requests for {len(recorded.names):,} models,"
        f" {recorded.total_bytes / 2**30:.2f} GiB together",
        highlight=False,
    )
    for note in notes:
        console.print(f"note: {note}", style="dim", highlight=False)
    cells = replay_all(console, recorded, shares, policies, workers)
    show(console, cells)
    if out is not None:
        write(out, recorded, notes, cells)
        console.print(f"wrote {out / 'simulate.html'}", highlight=False)


def open_trace(
    path: Path, sizes: Path | None, reload: Reload
) -> tuple[Trace, list[str]]:
    """Read it, or end the command with the sentence that says what is wrong."""
    try:
        return read_trace(path, sizes, reload)
    except TraceRefused as error:
        raise Failed(str(error)) from error


def replay_all(
    console: Console,
    trace: Trace,
    shares: Sequence[float],
    policies: Sequence[str],
    workers: int,
) -> list[Cell]:
    """All replays, with a bar."""
    jobs = jobs_of(trace, shares, policies)
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn())
    with Progress(
        *columns,
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as progress:
        bar = progress.add_task("replaying", total=len(jobs))
        try:
            return run(
                trace,
                jobs,
                workers or os.cpu_count(),
                lambda cell: progress.update(
                    bar, advance=1, description=f"{cell.policy} at {cell.share:.0%}"
                ),
            )
        except ImportError as error:
            raise Failed(
                "The bound lp needs scipy: pip install 'hotset[sim]'"
            ) from error


def write(
    folder: Path, trace: Trace, notes: Sequence[str], cells: Sequence[Cell]
) -> None:
    """The page, the picture and the numbers."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_page(folder / "simulate.html", trace, notes, cells)
        text = json.dumps(as_json(trace, notes, cells), indent=1) + "\n"
        (folder / "simulate.json").write_text(text)
        image = picture(cells)
        if image is not None:
            (folder / "simulate.png").write_bytes(image)
    except OSError as error:
        raise Failed(f"Cannot write to {folder}: {error.strerror}") from error


def parse_shares(text: str) -> list[float]:
    """`5%,10%` or `0.05,0.1`, each above 0 and at most all."""
    shares = []
    for part in text.split(","):
        word = part.strip()
        try:
            share = float(word.rstrip("%")) / (100.0 if word.endswith("%") else 1.0)
        except ValueError:
            share = 0.0
        if not 0.0 < share <= 1.0:
            raise typer.BadParameter(
                f"{word!r} is not a share of all models; write 5%,10%,20%"
            )
        shares.append(share)
    return sorted(set(shares))


def parse_policies(text: str) -> list[str]:
    """Names, or all of ours with the clairvoyant that take seconds."""
    if text == "all":
        return [*POLICIES, "belady-cost", "packed"]
    names = [word.strip() for word in text.split(",")]
    known = (*POLICIES, *CLAIRVOYANT)
    for name in names:
        if name not in known:
            raise typer.BadParameter(
                f"no policy {name!r}; choose from all, {', '.join(known)}"
            )
    return list(dict.fromkeys(names))
