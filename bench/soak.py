"""An hour of mixed traffic over all front ends: is anything wrong, lost, or growing?

Each front end serves the same 60 models from a budget of a third of their bytes, in a
process of its own, all at once. Each gets hits and cold loads (Zipf 1.0), and between
them what the world sends: unknown models, malformed tensors, callers that cancel, that
go away in the middle of a message, that have hardly any time, new connections, gzip,
JSON over HTTP, and now and then 16 MiB there and back. Every answer is held against its
model's reference.

  wrong     answers that were not the right ones
  lost      valid requests whose caller waited (30 s), and that were not answered
  strange   answers with another code than they must have
  memory    heaps and shared memory of the tree of processes; the slope is that of a
            line by least squares from the end of the first third on, and so with PSS,
            which moves with strangers that use the same libraries

The rate is low, and bounded: what is looked for is what grows, not how fast it is.
"""

import argparse
import asyncio
import contextlib
import json
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.progress import Progress, TaskID

from bench import soak_plot
from bench.busy import Others
from bench.process import Server, hotset, servers
from bench.result import console, finish, parser
from bench.soak_course import Course, look, run
from bench.soak_models import Fleet, make
from bench.soak_results import details_of, figures_of
from bench.soak_traffic import KINDS, Line

EPILOG = """examples:
  python -m bench.soak --quick
  python -m bench.soak                              an hour
  python -m bench.soak --only envoy --minutes 600 --rate 200
  python -m bench.soak --only grpcio --minutes 3 --rate 300 --every 5 --without large"""

FRONTENDS = ("grpcio", "envoy", "zttp")
STORE = "store"
LOOKS = 9
"""The least that there is to compute with."""
ROOM = 3
"""The budget is one of so many parts of the fleet."""


def measure(options: argparse.Namespace) -> tuple[list[Course], dict[str, object]]:
    """All front ends at once; what each did, and what the machine did meanwhile."""
    courses = [Course(name) for name in options.frontends]
    with tempfile.TemporaryDirectory() as folder, Progress(console=console) as progress:
        place = Path(folder)
        bar = progress.add_task("packing models", total=options.models)

        def packed(done: int) -> None:
            progress.update(bar, completed=done)

        fleet = make(place / STORE, options.models, packed)
        budget = ("--budget", str(fleet.nbytes // ROOM))
        commands = [
            (name, hotset(place / STORE, "--frontend", name, *budget))
            for name in options.frontends
        ]
        with servers(commands, place) as started:
            shown = progress, progress.add_task("soaking, s", total=options.seconds)
            others, before = Others(), spent(started)
            asyncio.run(soak(started, courses, fleet, options, shown))
            ours = spent(started) - before
            progress.update(shown[1], completed=options.seconds)
            for course, server in zip(courses, started, strict=True):
                ask_and_stop(course, server)
    machine: dict[str, object] = {
        "cores_taken_by_servers_and_client": round(ours / options.seconds, 3),
        "share_of_all_cores_taken_by_others": round(others.share(ours), 3),
    }
    return courses, machine


async def soak(
    started: Sequence[Server],
    courses: Sequence[Course],
    fleet: Fleet,
    options: argparse.Namespace,
    shown: tuple[Progress, TaskID],
) -> None:
    """The same stream to each, at its share of the rate."""
    progress, bar = shown
    pace = (options.seconds, options.rate / len(started), options.every)
    async with asyncio.TaskGroup() as group:
        for course, server in zip(courses, started, strict=True):
            line = Line(server, fleet, 0, options.without)
            group.create_task(
                run(
                    server,
                    line,
                    course,
                    pace,
                    lambda now: progress.update(bar, completed=now),
                )
            )


def spent(started: Sequence[Server]) -> float:
    """CPU seconds of the servers and of this process so far."""
    trees = sum(look(server.pid, 0.0).cpu_s for server in started)
    return trees + time.process_time()


def ask_and_stop(course: Course, server: Server) -> None:
    """What the cache did, whether the server ends as it should, and what it logged."""
    with contextlib.suppress(OSError):  # it has ended: `lost` and `exit_code` tell
        with urllib.request.urlopen(f"http://{server.http}/hotset/status") as answer:
            said = json.load(answer)
        course.loads, course.evictions = said["loads"], said["evictions"]
    course.exit_code = server.stop()
    course.complaints = complaints(server.log.read_text(errors="replace"))


def complaints(log: str) -> Counter[str]:
    """The errors in a log of JSON lines, by event. (Envoy's own lines are not JSON.)"""
    found: Counter[str] = Counter()
    for row in log.splitlines():
        with contextlib.suppress(ValueError):
            said = json.loads(row)
            if isinstance(said, dict) and said.get("level") in ("error", "critical"):
                found[str(said.get("event"))] += 1
    return found


def read_options() -> argparse.Namespace:
    """The command line."""
    made = parser(__doc__, EPILOG)
    made.add_argument("--only", default=",".join(FRONTENDS), metavar="NAMES",
                      help="Default: grpcio,envoy,zttp")  # fmt: skip
    made.add_argument("--without", default="", metavar="KINDS",
                      help=f"leave some out, of {', '.join(KINDS)}")  # fmt: skip
    made.add_argument("--minutes", type=float, metavar="N",
                      help="Default: 60, quick 0.4")  # fmt: skip
    made.add_argument("--rate", type=float, metavar="N",
                      help="a second, in all. Default: 18, quick 60")  # fmt: skip
    made.add_argument("--every", type=float, metavar="SECONDS",
                      help="from look to look. Default: 10, quick 1")  # fmt: skip
    made.add_argument("--models", type=int, metavar="N",
                      help="a third fits. Default: 60, quick 24")  # fmt: skip
    options = made.parse_args()
    quick = options.quick
    options.frontends = options.only.split(",")
    if strange := set(options.frontends) - set(FRONTENDS):
        made.error(f"--only: no front end {', '.join(sorted(strange))}; there are "
                   f"{', '.join(FRONTENDS)}")  # fmt: skip
    options.without = options.without.split(",") if options.without else []
    if set(options.without) - set(KINDS) or set(KINDS) <= set(options.without):
        made.error(f"--without: some, not all, of {', '.join(KINDS)}")
    options.seconds = 60 * (options.minutes or (0.4 if quick else 60.0))
    options.rate = options.rate or (60.0 if quick else 18.0)
    options.every = options.every or (1.0 if quick else 10.0)
    options.models = options.models or (24 if quick else 60)
    if min(options.seconds, options.rate, options.every, options.models) <= 0:
        made.error("--minutes, --rate, --every and --models are above 0")
    if options.seconds < LOOKS * options.every:
        made.error(f"--every leaves fewer than {LOOKS} looks")
    return options


def main() -> None:
    """The command."""
    options = read_options()
    courses, machine = measure(options)
    figures = {}
    for course in courses:
        figures.update(figures_of(course, options.seconds))
    details = {
        "minutes": options.seconds / 60,
        "requests_per_s": options.rate,
        "models": options.models,
        "kinds": KINDS,
        "without": options.without,
        # The looks have the load average at each moment.
        "meanwhile": machine,
        **{course.name: details_of(course, options.seconds) for course in courses},
    }
    finish(
        "soak",
        options,
        figures,
        details,
        lambda path: soak_plot.draw(courses, options.seconds, path),
    )


if __name__ == "__main__":
    main()
