"""What `hotset simulate` and `hotset plan` have in common: a recorded trace.

Owns: the options that make a trace of a file, opening it, and the bar over long work.
Must not: replay anything.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

from eviction.simulate.trace import Trace, TraceRefused
from runtime.commands import Failed
from runtime.trace_file import Reload, read_trace

TraceFile = Annotated[
    Path,
    typer.Argument(
        help="Requests as CSV (.gz too) or Parquet: columns time and model;"
        " nbytes and reload_s if you have them. An access log of hotset is one."
    ),
]
Sizes = Annotated[
    Path | None,
    typer.Option(help="Sizes as CSV: model and nbytes (or size_mb, params_m)."),
]
ReloadLatency = Annotated[
    float,
    typer.Option(help="Seconds a load takes at least, where not measured.", min=0.0),
]
Bandwidth = Annotated[
    float, typer.Option(help="GB/s a load moves, where not measured.", min=1e-6)
]
Speed = Annotated[
    float, typer.Option(help="Run the trace's clock this much faster.", min=1e-6)
]
Workers = Annotated[int, typer.Option(help="Processes; 0: one per core.", min=0)]


def open_trace(
    console: Console,
    path: Path,
    sizes: Path | None,
    reload_latency: float,
    bandwidth: float,
) -> tuple[Trace, list[str]]:
    """The trace and what had to be assumed, told; or the sentence that says what is
    wrong with the file."""
    try:
        trace, notes = read_trace(path, sizes, Reload(reload_latency, bandwidth * 1e9))
    except TraceRefused as error:
        raise Failed(str(error)) from error
    console.print(
        f"{len(trace):,} requests for {len(trace.names):,} models,"
        f" {trace.total_bytes / 2**30:.2f} GiB together",
        highlight=False,
    )
    for note in notes:
        console.print(f"note: {note}", style="dim", highlight=False)
    return trace, notes


@contextlib.contextmanager
def bar(console: Console, what: str, total: int) -> Iterator[Callable[[str], None]]:
    """A bar on a terminal, nothing elsewhere; call what it gives once a step."""
    with Progress(
        "{task.description}",
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as progress:
        task = progress.add_task(what, total=total)

        def step(now: str = "") -> None:
            progress.update(task, advance=1, description=now or what)

        yield step


@contextlib.contextmanager
def written_to(folder: Path) -> Iterator[Path]:
    """A folder that exists; what cannot be written ends the command in a sentence."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
    except OSError as error:
        raise Failed(f"Cannot write to {folder}: {error.strerror}") from error
