"""hotset simulate: what each policy would have done on a recorded trace.

Owns: the command's options and its order of work. Must not: know how a replay works.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from eviction.policies import POLICIES
from eviction.simulate.trace import Trace
from runtime.commands import Failed
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
from runtime.simulate import CLAIRVOYANT, LP_REQUESTS, Cell, Job, jobs_of, run
from runtime.simulate_report import as_json, picture, show, write_page

Shares = Annotated[
    str, typer.Option(help="Cache sizes, as shares of all models together.")
]
Policies = Annotated[
    str,
    typer.Option(
        help="Policies by name, separated by commas. all: every one of ours, and"
        " the best that knowing the future could do. lp: the exact lower bound"
        " (minutes on long traces)."
    ),
]
Waits = Annotated[
    bool,
    typer.Option(
        "--waits",
        help="Also how long requests wait when loads take their time, at most four"
        " at once, and requests queue behind them. Twice the work.",
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(help="A folder for simulate.html, simulate.png, simulate.json."),
]


def simulate(
    trace: TraceFile,
    sizes: Sizes = None,
    budget: Shares = "5%,10%,20%,40%",
    policy: Policies = "all",
    waits: Waits = False,
    speed: Speed = 1.0,
    out: Out = None,
    reload_latency: ReloadLatency = 0.25,
    bandwidth: Bandwidth = 2.0,
    workers: Workers = 0,
) -> None:
    """Replay a trace through every eviction policy and compare.

    The same policy objects that run in the server, over requests that are over: how
    many requests, bytes and seconds of loading each policy would have missed at each
    cache size, beside what a cache that knows the future could have done.

        hotset simulate requests.csv --sizes sizes.csv --out report
    """
    shares, policies = parse_shares(budget), parse_policies(policy)
    console = Console()
    recorded, notes = open_trace(console, trace, sizes, reload_latency, bandwidth)
    if policy == "all" and len(recorded) <= LP_REQUESTS:
        policies.append("lp")
    jobs = jobs_of(recorded, shares, policies, speed if waits else None)
    cells = replay_all(console, recorded, jobs, workers)
    show(console, cells)
    if out is not None:
        write(out, recorded, notes, cells)
        console.print(f"wrote {out / 'simulate.html'}", highlight=False)


def replay_all(
    console: Console, trace: Trace, jobs: Sequence[Job], workers: int
) -> list[Cell]:
    """All replays, with a bar."""
    with bar(console, "replaying", len(jobs)) as step:
        try:
            return run(
                trace,
                jobs,
                workers or None,
                lambda cell: step(f"{cell.policy} at {cell.share:.0%}"),
            )
        except ImportError as error:
            raise Failed(
                "The bound lp needs scipy: pip install 'hotset[sim]'"
            ) from error


def write(
    folder: Path, trace: Trace, notes: Sequence[str], cells: Sequence[Cell]
) -> None:
    """The page, the picture and the numbers."""
    with written_to(folder):
        write_page(folder / "simulate.html", trace, notes, cells)
        text = json.dumps(as_json(trace, notes, cells), indent=1) + "\n"
        (folder / "simulate.json").write_text(text)
        image = picture(cells)
        if image is not None:
            (folder / "simulate.png").write_bytes(image)


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
