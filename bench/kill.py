"""kill -9 the engine under load, again and again; then stop it, so that it hangs.

    hotset serve --frontends N      N + 2 processes; 8 callers who check every answer

An outage is the longest time in which nobody got an answer, from just before a kill
until the next one. A call is lost if it ends in an error, whatever the error; its
deadline is 30 seconds. The engine is found as an operator would find it: a child of the
server. `hung`: SIGSTOP, which is found out by --predict-timeout (2 s here).

Kills are further apart than a life that counts as short (5 s), or the supervisor would
wait longer and longer before it starts another.
"""

import argparse
import asyncio
import random
import signal
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import get_args

import grpc
import psutil
import torch
from rich.progress import Progress, TaskID

from bench import kill_plot
from bench.busy import load
from bench.client import Call, dialled, quantile
from bench.fleet_models import STORE, make
from bench.process import Server, hotset, servers
from bench.result import Figure, console, finish, parser
from bench.right import is_right
from bench.traffic import request
from runtime.config import Frontend

EPILOG = """examples:
  python -m bench.kill --quick
  python -m bench.kill                     about 4 minutes: 20 kills, 5 hangs
  python -m bench.kill --frontend envoy --tag envoy
  python -m bench.kill --frontends 4 --callers 32
  python -m bench.kill --device cuda:0 --tag h100"""

CALLERS = 8
PREDICT_TIMEOUT_S = 2.0
BEFORE_S = 0.05
"""So long before a kill an outage may have begun."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A call that ended, on the bench's clock."""

    began: float
    ended: float
    outcome: str
    """"right", "wrong", or the code of an error."""


@dataclass(slots=True)
class Course:
    """What one kind of end did: when it was dealt, and every call of the time."""

    name: str
    ends: list[float] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    load: float = 0.0

    def count(self, *outcomes: str) -> int:
        """Calls that ended so."""
        return sum(answer.outcome in outcomes for answer in self.answers)

    def outages(self) -> list[float]:
        """The longest time without an answer, for each end."""
        times = sorted(answer.ended for answer in self.answers)
        until = [*self.ends[1:], times[-1]]
        found = []
        for begin, end in zip(self.ends, until, strict=True):
            here = [t for t in times if begin - BEFORE_S <= t <= end]
            found.append(max(b - a for a, b in pairwise(here)))
        return found

    def p99(self, *windows: tuple[float, float]) -> float:
        """Of the latencies of calls that began within these windows."""
        seen = sorted(
            answer.ended - answer.began
            for answer in self.answers
            if any(begin <= answer.began < end for begin, end in windows)
        )
        return quantile(seen, 0.99)


class Callers:
    """Ask until told to stop; every answer is held against its model's reference."""

    def __init__(self, right: dict[str, torch.Tensor], course: Course) -> None:
        self._right = right
        self._asked = {name: request(name).SerializeToString() for name in right}
        self._course = course
        self._stopped = False

    def stop(self) -> None:
        """After the calls that are under way."""
        self._stopped = True

    async def caller(self, call: Call, seed: int) -> None:
        """One of them."""
        order, names = random.Random(seed), list(self._asked)
        while not self._stopped:
            name = order.choice(names)
            began = time.perf_counter()
            try:
                answer = await call(self._asked[name])
            except grpc.aio.AioRpcError as error:
                outcome = error.code().name
            else:
                right = is_right(answer, self._right[name])
                outcome = "right" if right else "wrong"
            ended = time.perf_counter()
            self._course.answers.append(Answer(began, ended, outcome))


def engine_of(server: Server) -> psutil.Process:
    """The one that serves: the oldest, the other waits to take its place."""
    engines = [
        child
        for child in psutil.Process(server.pid).children()
        if "engine" in child.cmdline()
    ]
    return min(engines, key=lambda child: (child.create_time(), child.pid))


async def deal(
    server: Server,
    course: Course,
    how: signal.Signals,
    times: int,
    apart: float,
    told: tuple[Progress, TaskID],
) -> None:
    """The ends, one after the other, with time to come back after each."""
    await asyncio.sleep(apart)
    for _ in range(times):
        engine = engine_of(server)
        course.ends.append(time.perf_counter())
        engine.send_signal(how)
        await asyncio.sleep(apart)
        told[0].advance(told[1])


async def run(
    server: Server,
    course: Course,
    right: dict[str, torch.Tensor],
    options: argparse.Namespace,
    dealing: tuple[signal.Signals, int, float],
    told: tuple[Progress, TaskID],
) -> None:
    """One course: load, ends, and the last answers."""
    callers = Callers(right, course)
    async with asyncio.TaskGroup() as group:
        for seed in range(options.callers):
            group.create_task(_own(server.grpc, callers, seed))
        await deal(server, course, *dealing, told)
        callers.stop()
    course.load = load()


async def _own(address: str, callers: Callers, seed: int) -> None:
    async with dialled(address) as call:
        await callers.caller(call, seed)


def measure(options: argparse.Namespace) -> list[Course]:
    """Both courses, on one server."""
    hung_apart = options.apart + PREDICT_TIMEOUT_S
    plan = [
        (Course("killed"), (signal.SIGKILL, options.kills, options.apart)),
        (Course("hung"), (signal.SIGSTOP, options.hangs, hung_apart)),
    ]
    with tempfile.TemporaryDirectory() as folder, Progress(console=console) as progress:
        bar = progress.add_task("making models", total=options.models)
        fleet = make(Path(folder), options.models, lambda: progress.advance(bar))
        bar = progress.add_task("ends", total=options.kills + options.hangs)
        flags = ["--frontend", options.frontend]
        flags += ["--frontends", str(options.frontends)]
        flags += ["--predict-timeout", str(PREDICT_TIMEOUT_S)]
        flags += ["--device", options.device]
        command = hotset(Path(folder) / STORE, *flags)
        with servers([("tree", command)], Path(folder)) as (server,):
            for course, dealing in plan:
                told = progress, bar
                doing = run(server, course, dict(fleet.right), options, dealing, told)
                asyncio.run(doing)
    return [course for course, _ in plan]


def figures_of(killed: Course, hung: Course) -> dict[str, Figure]:
    """What is promised, and what was seen."""
    outages, hangs = sorted(killed.outages()), sorted(hung.outages())
    both = killed, hung
    wrong = sum(course.count("wrong") for course in both)
    lost = sum(len(c.answers) - c.count("right", "wrong") for c in both)
    first = hung.ends[0]
    before = hung.p99((0.0, first - 1.0))
    # From a second after the longest that any of them took to come back.
    back = max(hangs) + 1.0
    until = [*hung.ends[1:], hung.answers[-1].ended]
    windows = [(b + back, e) for b, e in zip(hung.ends, until, strict=True)]
    return {
        "wrong": Figure(wrong, "answers", goal=0),
        "lost": Figure(lost, "calls", goal=0),
        "answers": Figure(sum(len(c.answers) for c in both), "answers"),
        "outage_p50": Figure(quantile(outages, 0.5) * 1e3, "ms", goal=500),
        "outage_p99": Figure(quantile(outages, 0.99) * 1e3, "ms", goal=1000),
        "slowest": Figure(
            max(a.ended - a.began for a in killed.answers) * 1e3, "ms", goal=2000
        ),
        "hung_outage_p99": Figure(
            quantile(hangs, 0.99) * 1e3, "ms", goal=(PREDICT_TIMEOUT_S + 1.5) * 1e3
        ),
        "hung_p99_after": Figure(hung.p99(*windows) / before, "x before", goal=2.0),
    }


def read_options() -> argparse.Namespace:
    """The command line."""
    made = parser(__doc__, EPILOG)
    made.add_argument("--kills", type=int, metavar="N", help="Default: 20, quick 3")
    made.add_argument("--hangs", type=int, metavar="N", help="Default: 5, quick 1")
    made.add_argument("--apart", type=float, metavar="SECONDS",
                      help="between two of them. Default: 6, quick 3")  # fmt: skip
    made.add_argument("--frontend", choices=get_args(Frontend), default="grpcio",
                      help="what the callers talk to. Default: grpcio")  # fmt: skip
    made.add_argument("--frontends", type=int, default=1, metavar="N",
                      help="Default: 1")  # fmt: skip
    made.add_argument("--device", default="cpu", metavar="D",
                      help="cpu or cuda:N. Default: cpu")  # fmt: skip
    made.add_argument("--callers", type=int, default=CALLERS, metavar="N",
                      help=f"Default: {CALLERS}")  # fmt: skip
    made.add_argument("--models", type=int, metavar="N",
                      help="of 5 MB, all resident. Default: 40, quick 8")  # fmt: skip
    options = made.parse_args()
    quick = options.quick
    options.kills = options.kills or (3 if quick else 20)
    options.hangs = options.hangs or (1 if quick else 5)
    options.apart = options.apart or (3.0 if quick else 6.0)
    options.models = options.models or (8 if quick else 40)
    return options


def details_of(courses: Sequence[Course]) -> dict[str, object]:
    """All that is worth keeping, without every single call."""
    return {
        course.name: {
            "outages_ms": [round(s * 1e3, 1) for s in course.outages()],
            "answers": len(course.answers),
            "outcomes": {
                outcome: course.count(outcome)
                for outcome in sorted({a.outcome for a in course.answers})
            },
            "load": course.load,
            "slowest": [asdict(a) for a in slowest(course)],
        }
        for course in courses
    }


def slowest(course: Course) -> list[Answer]:
    """The twenty calls that took longest."""
    return sorted(course.answers, key=lambda a: a.began - a.ended)[:20]


def main() -> None:
    """The command."""
    options = read_options()
    courses = killed, hung = measure(options)
    finish(
        "kill",
        options,
        figures_of(killed, hung),
        details_of(courses),
        lambda path: kill_plot.draw(courses, path),
        options.device,
    )


if __name__ == "__main__":
    main()
