"""What hotset costs on a hit, against the smallest honest server for the same model.

Five servers run at once, as processes of their own, each with the same MLP
64-256-256-10 and the same weights:

    floor            bench/floor_server.py: grpc.aio + torch, one model, nothing else
    floor_uvloop     the same on uvloop
    hotset           python -m runtime serve, as a user starts it
    hotset_asyncio   hotset's composition root on the standard event loop
    hotset_uvloop    the same on uvloop

They are asked in turns, A B C D E, E D C B A, ..., at concurrency 1 and 8, each round
for the same time, so that a busy moment of the machine hits all of them. Reported are
medians over the rounds, the ratios of each round (median and spread), and the server's
CPU seconds per 1,000 requests. Every server's answers are compared first.
"""

import argparse
import asyncio
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from itertools import islice, repeat
from pathlib import Path
from statistics import median

import torch
from rich.progress import Progress

from bench.client import Call, closed_loop, dialled, quantile
from bench.floor_server import mlp
from bench.process import Server, hotset, servers
from bench.result import Figure, console, finish, parser
from bench.traffic import example, one_model, request
from protos import open_inference_pb2 as pb

EPILOG = """examples:
  python -m bench.floor --quick
  python -m bench.floor --rounds 12 --seconds 3
  python -m bench.floor --only floor,hotset        two servers, half the time

Run it when nothing else runs: client and server need a core each."""

CONCURRENCY = (1, 8)
MOST_REQUESTS = 200_000
"""A round's bound, whatever the clock does."""

QUICK = ("floor", "hotset", "hotset_uvloop")
"""Each server costs seconds of start-up."""

WARM_UP = 300
"""Requests to each server before anything counts."""


@dataclass(slots=True)
class Seen:
    """One server at one concurrency: a value a round."""

    p50: list[float] = field(default_factory=list)
    p99: list[float] = field(default_factory=list)
    rate: list[float] = field(default_factory=list)
    requests: int = 0
    cpu: float = 0.0

    @property
    def cpu_per_1000(self) -> float:
        """Server CPU seconds per 1,000 requests, over all rounds."""
        return 1000 * self.cpu / self.requests

    def shown(self) -> dict[str, object]:
        """For the JSON: microseconds."""
        return {
            "p50_us": [round(v * 1e6, 1) for v in self.p50],
            "p99_us": [round(v * 1e6, 1) for v in self.p99],
            "requests_per_s": [round(v, 1) for v in self.rate],
            "requests": self.requests,
            "cpu_s_per_1000": round(self.cpu_per_1000, 4),
        }


Results = dict[tuple[str, int], Seen]


def commands(store: Path) -> dict[str, list[str]]:
    """Every server by name."""
    return {
        "floor": ["bench.floor_server", "--loop", "asyncio"],
        "floor_uvloop": ["bench.floor_server", "--loop", "uvloop"],
        "hotset": hotset(store),
        **{
            f"hotset_{loop}": [
                *("bench.hotset_server", "--loop", loop, "--store", str(store))
            ]
            for loop in ("asyncio", "uvloop")
        },
    }


async def ask_all(
    started: Sequence[Server], rounds: int, seconds: float, progress: Progress
) -> Results:
    """Warm up, compare the answers, then measure in turns."""
    results: Results = {}
    bar = progress.add_task("asking", total=rounds * len(CONCURRENCY) * len(started))
    async with AsyncExitStack() as stack:
        callers = [
            (server, await stack.enter_async_context(dialled(server.grpc)))
            for server in started
        ]
        for server, call in callers:
            check(server, (await closed_loop(call, messages(WARM_UP), 8)).last)
        for number in range(rounds):
            turn = callers if number % 2 == 0 else callers[::-1]
            for concurrency in CONCURRENCY:
                for server, call in turn:
                    seen = results.setdefault((server.name, concurrency), Seen())
                    await measure(server, call, concurrency, seconds, seen)
                    progress.advance(bar)
    return results


async def measure(
    server: Server, call: Call, concurrency: int, seconds: float, seen: Seen
) -> None:
    """One round of one server."""
    spent = server.cpu_seconds()
    found = await closed_loop(call, messages(MOST_REQUESTS), concurrency, seconds)
    seen.cpu += server.cpu_seconds() - spent
    check(server, found.last)
    seen.requests += len(found.latencies)
    seen.p50.append(quantile(found.latencies, 0.5))
    seen.p99.append(quantile(found.latencies, 0.99))
    seen.rate.append(found.rate)


def messages(most: int) -> Iterator[bytes]:
    """The same request, so many times at most."""
    return islice(repeat(request("mlp").SerializeToString()), most)


def check(server: Server, answer: bytes) -> None:
    """The right weights gave it, or the whole comparison is void."""
    (raw,) = pb.ModelInferResponse.FromString(answer).raw_output_contents
    with torch.inference_mode():
        right = mlp()(example())[0]
    given = torch.frombuffer(bytearray(raw), dtype=torch.float32)
    if not torch.allclose(given, right, atol=1e-5):
        raise SystemExit(f"{server!r} gave a wrong answer: nothing to compare")


def ratios(results: Results, a: str, b: str, concurrency: int) -> dict[str, float]:
    """a over b: the ratio of medians, and the least and greatest of a round."""
    first, second = results[a, concurrency].p50, results[b, concurrency].p50
    each = [x / y for x, y in zip(first, second, strict=True)]
    return {
        "of_medians": round(median(first) / median(second), 3),
        "least": round(min(each), 3),
        "greatest": round(max(each), 3),
    }


def figures(results: Results, names: Sequence[str]) -> dict[str, Figure]:
    """What is worth a line of its own."""
    found: dict[str, Figure] = {}
    for concurrency in CONCURRENCY:
        c = f"c{concurrency}"
        for name in names:
            seen = results[name, concurrency]
            found[f"{name}_p50_{c}"] = Figure(median(seen.p50) * 1e6, "us")
            found[f"{name}_p99_{c}"] = Figure(median(seen.p99) * 1e6, "us")
            found[f"{name}_cpu_{c}"] = Figure(seen.cpu_per_1000, "s per 1000")
        for label, a, b in PAIRS:
            if a in names and b in names:
                ratio = ratios(results, a, b, concurrency)["of_medians"]
                found[f"{label}_{c}"] = Figure(ratio, "x")
    return found


PAIRS = (
    ("hotset_to_floor", "hotset", "floor"),
    ("uvloop_to_hotset", "hotset_uvloop", "hotset"),
    ("uvloop_to_asyncio_hotset", "hotset_uvloop", "hotset_asyncio"),
    ("uvloop_to_asyncio_floor", "floor_uvloop", "floor"),
    ("hotset_to_floor_uvloop", "hotset_uvloop", "floor_uvloop"),
)
"""Ratios of p50: below 1 the first is quicker."""


def details(results: Results, names: Sequence[str]) -> dict[str, object]:
    """Every round, and the ratios with their spread."""
    return {
        "rounds": {f"{n} c{c}": seen.shown() for (n, c), seen in results.items()},
        "ratios_of_p50": {
            f"{label} c{c}": ratios(results, a, b, c)
            for label, a, b in PAIRS
            for c in CONCURRENCY
            if a in names and b in names
        },
    }


def draw(results: Results, names: Sequence[str], path: Path) -> None:
    """Every round's p50 as a point, the median as a bar."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, panes = pyplot.subplots(1, len(CONCURRENCY), figsize=(10, 4))
    for pane, concurrency in zip(panes, CONCURRENCY, strict=True):
        for place, name in enumerate(names):
            values = [v * 1e6 for v in results[name, concurrency].p50]
            colour = "#b0b0b0" if name.startswith("floor") else "#2a6f97"
            pane.bar(place, median(values), color=colour, width=0.6)
            pane.plot([place] * len(values), values, "k.", markersize=4)
        pane.set_xticks(range(len(names)), names, rotation=20)
        pane.set_title(f"p50 of a hit, concurrency {concurrency}")
        pane.set_ylabel("microseconds")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def read_options() -> argparse.Namespace:
    """The command line."""
    command = parser(__doc__, EPILOG)
    command.add_argument(
        "--rounds",
        type=int,
        metavar="N",
        help="rounds a server and concurrency, 5 or more for a figure to keep. "
        "Default: 10, quick 5",
    )
    command.add_argument(
        "--seconds",
        type=float,
        metavar="S",
        help="length of a round. Default: 3, quick 0.3",
    )
    command.add_argument(
        "--only",
        default="",
        metavar="NAMES",
        help="some of the servers, separated by commas. Default: all five, quick "
        f"{','.join(QUICK)}",
    )
    options = command.parse_args()
    names = list(commands(Path()))
    asked = options.only.split(",") if options.only else QUICK
    options.names = list(asked) if options.only or options.quick else names
    strange = set(options.names) - set(names)
    if strange:
        command.error(f"no such server: {', '.join(sorted(strange))}")
    options.rounds = options.rounds or (5 if options.quick else 10)
    options.seconds = options.seconds or (0.3 if options.quick else 3.0)
    if options.rounds < 1 or options.seconds <= 0:
        command.error("--rounds and --seconds are positive")
    return options


def main() -> None:
    """The command."""
    options = read_options()
    names: list[str] = options.names
    with tempfile.TemporaryDirectory() as folder, Progress(console=console) as progress:
        place = Path(folder)
        starting = progress.add_task("starting", total=1)
        one_model(place / "store")
        known = commands(place / "store")
        with servers([(name, known[name]) for name in names], place) as started:
            progress.advance(starting)
            results = asyncio.run(
                ask_all(started, options.rounds, options.seconds, progress)
            )
    finish(
        "floor",
        options,
        figures(results, names),
        details(results, names),
        lambda path: draw(results, names, path),
    )


if __name__ == "__main__":
    main()
