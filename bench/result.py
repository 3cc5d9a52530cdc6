"""What a benchmark found, told the same way by all of them.

    options = parser(__doc__).parse_args()      --quick, --out, --tag
    ... measure ...
    finish("floor", options, {"hit_p50_us": Figure(312.0, "us")}, details, draw)

Owns: the options all benches share, what is said of machine and versions, the files
under results/, and the last line, `RESULT {"name": {"value", "goal", "holds"}}`. Must
not: measure, or import torch or matplotlib before somebody needs them.

A figure without a goal holds. The exit code of a bench says whether it measured, not
whether it liked what it saw: a busy machine misses goals.
"""

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"

HALT_POLL = "/sys/module/haltpoll/parameters/guest_halt_poll_ns"
GOVERNOR = "/sys/devices/system/cpu/cpuidle/current_governor"

PACKAGES = ("hotset", "torch", "grpcio", "protobuf", "numpy", "obstore", "uvloop")

console = Console(stderr=True)
"""Bars and tables go to standard error; standard output is for the RESULT line."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One number, and what it should be. A goal is met when it is reached exactly."""

    value: float
    unit: str = ""
    goal: float | None = None
    better: Literal["lower", "higher"] = "lower"

    @property
    def holds(self) -> bool:
        """True if the goal is met, or none was set."""
        if self.goal is None:
            return True
        if self.better == "lower":
            return self.value <= self.goal
        return self.value >= self.goal


def parser(doc: str | None, epilog: str = "") -> argparse.ArgumentParser:
    """A parser whose --help is the bench's own docstring."""
    made = argparse.ArgumentParser(
        description=doc,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument(
        "--quick",
        action="store_true",
        help="done within 50 seconds; for a look, not for the README. Writes no files "
        "unless --out is given",
    )
    made.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="where the JSON and the PNG go. Default: bench/results",
    )
    made.add_argument(
        "--tag",
        default="",
        metavar="WORD",
        help="goes into the files' names, so that one machine's results do not "
        "replace another's: floor-h200.json",
    )
    return made


def finish(
    name: str,
    options: argparse.Namespace,
    figures: Mapping[str, Figure],
    details: Mapping[str, object],
    draw: Callable[[Path], None] | None = None,
    device: str = "cpu",
) -> None:
    """Write the files, show the table, print the RESULT line. The last thing to do.

    `details`: everything else worth keeping, as JSON. `draw`: writes the PNG.
    """
    if options.out is not None or not options.quick:
        folder = options.out or RESULTS
        folder.mkdir(parents=True, exist_ok=True)
        stem = f"{name}-{options.tag}" if options.tag else name
        said = {
            **about(name, options, device),
            "figures": {
                key: {**told(figure), "unit": figure.unit}
                for key, figure in figures.items()
            },
            "details": details,
        }
        text = json.dumps(said, indent=2) + "\n"
        (folder / f"{stem}.json").write_text(text)
        if draw is not None:
            draw(folder / f"{stem}.png")
        console.print(f"written: {stem}.json" + (f", {stem}.png" if draw else ""))
    show(name, figures)
    print(line(figures), flush=True)


def line(figures: Mapping[str, Figure]) -> str:
    """The last line of every bench, for whoever reads it by program."""
    return "RESULT " + json.dumps({name: told(f) for name, f in figures.items()})


def told(figure: Figure) -> dict[str, object]:
    """Value, goal, holds."""
    return {
        "value": rounded(figure.value),
        "goal": figure.goal,
        "holds": figure.holds,
    }


def rounded(value: float) -> float:
    """Four digits are all that a timing is good for; counts stay exact."""
    return value if isinstance(value, int) else float(f"{value:.4g}")


def show(name: str, figures: Mapping[str, Figure]) -> None:
    """The figures as a table."""
    table = Table("figure", "value", "unit", "goal", title=name, title_justify="left")
    for key, figure in figures.items():
        goal = "-"
        if figure.goal is not None:
            sign = "<=" if figure.better == "lower" else ">="
            goal = f"{sign} {figure.goal:g} {'holds' if figure.holds else 'MISSED'}"
        table.add_row(key, f"{rounded(figure.value):,}", figure.unit, goal)
    console.print(table)


def about(
    name: str, options: argparse.Namespace, device: str = "cpu"
) -> dict[str, object]:
    """Where, when, with what, and by which command."""
    return {
        "bench": name,
        "command": command(name, sys.argv[1:]),
        "quick": options.quick,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "machine": machine(device),
        "versions": versions(),
    }


def command(name: str, arguments: list[str]) -> str:
    """What to type to see this again; --out is left out, it is nobody else's folder."""
    kept: list[str] = []
    skip = False
    for argument in arguments:
        if not skip and not argument.startswith("--out"):
            kept.append(argument)
        skip = argument == "--out"
    return " ".join(["python -m", f"bench.{name}", shlex.join(kept)]).strip()


def machine(device: str = "cpu") -> dict[str, object]:
    """What it ran on, and how busy that was."""
    found: dict[str, object] = {
        "cpu": _field("/proc/cpuinfo", "model name") or platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory": _field("/proc/meminfo", "MemTotal"),
        "system": f"{platform.system()} {platform.release()}",
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "halt_poll_us": _halt_poll_us(),
        "device": device,
    }
    if device.startswith("cuda"):
        import torch

        found["gpu"] = torch.cuda.get_device_name(torch.device(device))
    return found


def _halt_poll_us() -> float | None:
    """How long an idle core of a virtual machine looks for work before it sleeps, which
    may be hard to wake from; None where another governor says, as on metal."""
    try:
        if Path(GOVERNOR).read_text().strip() != "haltpoll":
            return None
        return int(Path(HALT_POLL).read_text()) / 1000
    except (OSError, ValueError):
        return None


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Python's, and those of the packages that decide how fast we are."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _field(path: str, name: str) -> str:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return ""
    for said in lines:
        key, _, value = said.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""


def _commit() -> str:
    try:
        asked = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:  # a machine without git: what was measured is kept all the same
        return "unknown"
    return asked.stdout.strip() if asked.returncode == 0 else "unknown"
