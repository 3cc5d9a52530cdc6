"""The steps of a predict on a hit, each in microseconds.

Runs bench/test_micro.py under pytest-benchmark: decode, catalog, conform, lease (lru
and gdsf), the forward alone, the batcher, the whole predict in process, encode, and the
whole predict over a real socket to a real server process. Each is repeated for about a
second; reported is the median.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from bench.process import ROOT
from bench.result import Figure, console, finish, parser

EPILOG = """examples:
  python -m bench.micro --quick
  python -m bench.micro --only lease               the steps with this in their name
  python -m bench.micro --seconds 5

pytest-benchmark's own JSON, with every percentile, is kept in the details."""

SUITE = Path(__file__).parent / "test_micro.py"


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a predict: seconds for one operation."""

    name: str
    median: float
    least: float
    quartile: float
    deviation: float
    rounds: int

    def shown(self) -> dict[str, float]:
        """For the JSON: microseconds."""
        return {
            "median_us": round(self.median * 1e6, 3),
            "min_us": round(self.least * 1e6, 3),
            "q3_us": round(self.quartile * 1e6, 3),
            "stddev_us": round(self.deviation * 1e6, 3),
            "rounds": self.rounds,
        }


def measure(seconds: float, only: str, suite: Path = SUITE) -> list[Step]:
    """Run the suite in a process of its own, so that nothing here is in its way."""
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "benchmark.json"
        command = [
            *(sys.executable, "-m", "pytest", "-q", str(suite), "--rootdir", str(ROOT)),
            # The suite's own settings skip benchmarks and end tests after 20 s.
            *("-c", str(ROOT / "pyproject.toml"), "-o", "addopts=", "--timeout=0"),
            *("-p", "no:cacheprovider", "--import-mode=importlib"),
            *("--benchmark-only", f"--benchmark-json={found}"),
            *("--benchmark-disable-gc", "--benchmark-warmup=on"),
            *(f"--benchmark-max-time={seconds}", "--benchmark-min-rounds=5"),
            *(["-k", only] if only else []),
        ]
        # A thread, as a lane of the server has it: two would fight over a small model.
        environ = {**os.environ, "OMP_NUM_THREADS": "1"}
        ended = subprocess.run(
            command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False
        )
        if ended.returncode:
            raise SystemExit(f"the suite failed:\n{ended.stdout}\n{ended.stderr}")
        return read(found.read_text())


def read(text: str) -> list[Step]:
    """pytest-benchmark's report as steps, each for one operation."""
    steps = []
    for told in json.loads(text)["benchmarks"]:
        stats, per = told["stats"], told["extra_info"]["per"]
        steps.append(
            Step(
                name=told["name"].removeprefix("test_").replace("[", "_").rstrip("]"),
                median=stats["median"] / per,
                least=stats["min"] / per,
                quartile=stats["q3"] / per,
                deviation=stats["stddev"] / per,
                rounds=stats["rounds"],
            )
        )
    return steps


def draw(steps: list[Step], path: Path) -> None:
    """A bar a step, on a scale that shows a microsecond beside a round trip."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, pane = pyplot.subplots(figsize=(8, 4))
    names = [step.name for step in steps]
    values = [step.median * 1e6 for step in steps]
    bars = pane.barh(names, values, color="#2a6f97")
    pane.bar_label(bars, [f" {value:.1f}" for value in values])
    pane.set_xscale("log")
    pane.invert_yaxis()
    pane.set_xlabel("microseconds, median (logarithmic)")
    pane.set_title("The steps of a predict on a hit")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def read_options() -> argparse.Namespace:
    """The command line."""
    command = parser(__doc__, EPILOG)
    command.add_argument(
        "--only", default="", metavar="WORD", help="only steps with WORD in their name"
    )
    command.add_argument(
        "--seconds",
        type=float,
        metavar="S",
        help="time spent on a step. Default: 2, quick 0.3",
    )
    options = command.parse_args()
    options.seconds = options.seconds or (0.3 if options.quick else 2.0)
    return options


def main() -> None:
    """The command."""
    options = read_options()
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with Progress(*columns, console=console) as progress:
        progress.add_task("running bench/test_micro.py", total=None)
        steps = measure(options.seconds, options.only)
    finish(
        "micro",
        options,
        {f"{step.name}_us": Figure(step.median * 1e6, "us") for step in steps},
        {step.name: step.shown() for step in steps},
        lambda path: draw(steps, path),
    )


if __name__ == "__main__":
    main()
