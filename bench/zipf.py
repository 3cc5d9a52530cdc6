"""Hit ratio and throughput of a Zipf stream, by policy and budget.

A fleet of MLPs of mixed sizes (36 KB to 1.2 MB) lies in a local store. The same seeded
stream of requests goes through the real engine, in process, once for every policy and
budget; every cell starts cold. One more cell goes over a socket, to a server process.
A budget is a share of the fleet's bytes.

Beside them stands what a cache could get that knew every popularity beforehand and kept
the best models by requests per byte ("foreknown"): a policy that learns as it goes can
come close, and on a stream whose popularities never change it cannot do much better.
"""

import argparse
import asyncio
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.progress import Progress, TaskID

from bench.client import closed_loop, dialled
from bench.process import hotset, servers
from bench.result import Figure, console, finish, parser
from bench.traffic import Stored, fleet, request, zipf
from eviction.policies import POLICIES
from protos import open_inference_pb2 as pb
from runtime import logs
from runtime.compose import composed
from runtime.counts import Counts
from runtime.engine import Engine
from runtime.sources import load
from runtime.wire import TEMPERATURE, decode

EPILOG = """examples:
  python -m bench.zipf --quick
  python -m bench.zipf --models 400 --alpha 0.8 --policies lru,gdsf,tournament
  python -m bench.zipf --budgets 5,10,20,40,80

alpha says how uneven the popularities are: 0 is even, 1 is the usual web traffic."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One policy under one budget."""

    policy: str
    percent: int
    hit_ratio: float
    wait_ratio: float
    """Requests that joined a load which another had caused."""
    rate: float
    evictions: int
    loads: int
    peak_share: float
    """Peak of the bytes held, as a share of the budget: never above 1."""

    def shown(self) -> dict[str, object]:
        """For the JSON."""
        return {
            "policy": self.policy,
            "budget_percent": self.percent,
            "hit_ratio": round(self.hit_ratio, 4),
            "wait_ratio": round(self.wait_ratio, 4),
            "requests_per_s": round(self.rate, 1),
            "evictions": self.evictions,
            "loads": self.loads,
            "peak_of_budget": round(self.peak_share, 4),
        }


@dataclass(frozen=True, slots=True)
class Plan:
    """What is asked, of what."""

    store: Path
    fleet: Sequence[Stored]
    stream: Sequence[str]
    callers: int

    def budget(self, percent: int) -> int:
        """So many percent of the fleet, in bytes."""
        return sum(model.nbytes for model in self.fleet) * percent // 100

    def foreknown(self, percent: int) -> float:
        """The share of the stream for the best set that fits, chosen by requests per
        byte, each model of it loaded once."""
        uses, left, hits = Counter(self.stream), self.budget(percent), 0
        for model in sorted(
            self.fleet, key=lambda m: uses[m.name] / m.nbytes, reverse=True
        ):
            if model.nbytes <= left and uses[model.name]:
                left -= model.nbytes
                hits += uses[model.name] - 1
        return hits / len(self.stream)


async def in_process(
    plan: Plan, policy: str, percent: int, progress: Progress, bar: TaskID
) -> Cell:
    """The stream through an engine of its own, in this process."""
    asked = {model.name: decode(request(model.name)) for model in plan.fleet}
    flags = {
        "store": str(plan.store),
        "device": "cpu",
        "policy": policy,
        "budget": str(plan.budget(percent)),
    }
    met: Counter[str] = Counter()
    async with composed(load(flags, None, {}), Counts()) as engine:
        names = counted(plan.stream, progress, bar)

        async def caller() -> None:
            for name in names:
                met[(await engine.predict(asked[name])).temperature] += 1

        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(plan.callers):
                group.create_task(caller())
        seconds = time.perf_counter() - began
        return await cell(engine, policy, percent, met, seconds)


async def cell(
    engine: Engine, policy: str, percent: int, met: Counter[str], seconds: float
) -> Cell:
    """What the engine says of the stream that has ended."""
    seen, total = await engine.snapshot(), met.total()
    return Cell(
        policy=policy,
        percent=percent,
        hit_ratio=met["hit"] / total,
        wait_ratio=met["wait"] / total,
        rate=total / seconds,
        evictions=seen.evictions,
        loads=seen.loads,
        peak_share=seen.peak_held / seen.capacity,
    )


async def over_a_socket(
    plan: Plan, address: str, progress: Progress, bar: TaskID
) -> tuple[float, float]:
    """Hit ratio and requests a second, as a client sees them."""
    raw = {m.name: request(m.name).SerializeToString() for m in plan.fleet}
    met: Counter[str] = Counter()
    async with dialled(address) as call:

        async def noted(message: bytes) -> bytes:
            answer = await call(message)
            said = pb.ModelInferResponse.FromString(answer)
            met[said.parameters[TEMPERATURE].string_param] += 1
            return answer

        names = counted(plan.stream, progress, bar)
        found = await closed_loop(noted, (raw[name] for name in names), plan.callers)
    return met["hit"] / met.total(), found.rate


def over_the_socket(budgets: Sequence[int]) -> int:
    """The budget of the server process: the middle one."""
    return sorted(budgets)[len(budgets) // 2]


def check_fits(plan: Plan, percent: int) -> None:
    """Every model must fit alone, or its requests are refused and not measured."""
    largest = max(model.nbytes for model in plan.fleet)
    if largest > plan.budget(percent):
        raise SystemExit(
            f"{percent} % of {len(plan.fleet)} models is less than the largest of "
            "them: take more models or a larger budget"
        )


def counted(
    names: Sequence[str], progress: Progress, bar: TaskID, step: int = 200
) -> Iterator[str]:
    """The names, with the bar moving now and then."""
    for number, name in enumerate(names, 1):
        if number % step == 0:
            progress.advance(bar, step)
        yield name
    progress.advance(bar, len(names) % step)


def measure(options: argparse.Namespace) -> tuple[Plan, list[Cell], dict[str, float]]:
    """All cells, and the one over the socket."""
    policies, budgets = options.policies, options.budgets
    cells: list[Cell] = []
    with tempfile.TemporaryDirectory() as folder, Progress(console=console) as progress:
        place = Path(folder)
        packing = progress.add_task("packing models", total=options.models)
        stored = fleet(
            place / "store",
            options.models,
            lambda done: progress.update(packing, completed=done),
        )
        names = [model.name for model in stored]
        stream = zipf(names, options.alpha, options.requests, options.seed)
        plan = Plan(place / "store", stored, stream, options.callers)
        check_fits(plan, min(budgets))
        for policy in policies:
            for percent in budgets:
                bar = progress.add_task(f"{policy} {percent} %", total=len(stream))
                cells.append(
                    asyncio.run(in_process(plan, policy, percent, progress, bar))
                )
        command = hotset(
            plan.store,
            *("--policy", policies[-1]),
            *("--budget", str(plan.budget(over_the_socket(budgets)))),
        )
        bar = progress.add_task("over a socket", total=len(stream))
        with servers([("hotset", command)], place) as (server,):
            ratio, rate = asyncio.run(over_a_socket(plan, server.grpc, progress, bar))
    return plan, cells, {"hit_ratio": round(ratio, 4), "requests_per_s": round(rate, 1)}


def figures(
    plan: Plan, cells: Sequence[Cell], socket: dict[str, float]
) -> dict[str, Figure]:
    """Hit ratio and throughput of each cell; the budget is the only goal."""
    found: dict[str, Figure] = {}
    for seen in cells:
        label = f"{seen.policy}_{seen.percent}"
        found[f"{label}_hit_ratio"] = Figure(seen.hit_ratio, "", None, "higher")
        found[f"{label}_rate"] = Figure(seen.rate, "1/s", None, "higher")
    for percent in sorted({seen.percent for seen in cells}):
        known = plan.foreknown(percent)
        found[f"foreknown_{percent}_hit_ratio"] = Figure(known, "", None, "higher")
    found["socket_hit_ratio"] = Figure(socket["hit_ratio"], "", None, "higher")
    found["socket_rate"] = Figure(socket["requests_per_s"], "1/s", None, "higher")
    most = max(seen.peak_share for seen in cells)
    found["peak_of_budget"] = Figure(most, "x", 1.0)
    return found


def draw(plan: Plan, cells: Sequence[Cell], path: Path) -> None:
    """Hit ratio and throughput against the budget, a line a policy."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, (ratio, rate) = pyplot.subplots(1, 2, figsize=(10, 4))
    for policy in dict.fromkeys(seen.policy for seen in cells):
        own = [seen for seen in cells if seen.policy == policy]
        percents = [seen.percent for seen in own]
        ratio.plot(percents, [seen.hit_ratio for seen in own], "o-", label=policy)
        rate.plot(percents, [seen.rate for seen in own], "o-", label=policy)
    percents = sorted({seen.percent for seen in cells})
    best = [plan.foreknown(percent) for percent in percents]
    ratio.plot(percents, best, "k--", label="foreknown", linewidth=1)
    for pane, title in ((ratio, "hit ratio"), (rate, "requests a second")):
        pane.set_title(f"{title}, {len(plan.fleet)} models, in process")
        pane.set_xlabel("budget, percent of all bytes")
        pane.set_ylim(bottom=0)
        pane.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def read_options() -> argparse.Namespace:
    """The command line."""
    command = parser(__doc__, EPILOG)
    command.add_argument(
        "--models", type=int, metavar="N", help="Default: 200, quick 150"
    )
    command.add_argument(
        "--requests",
        type=int,
        metavar="N",
        help="length of the stream. Default: 20000, quick 2000",
    )
    command.add_argument(
        "--alpha", type=float, default=1.0, metavar="A", help="Default: 1.0"
    )
    command.add_argument(
        "--callers",
        type=int,
        default=8,
        metavar="N",
        help="requests under way at a time; what they use cannot leave, and a request "
        "that joins a load is no hit. Default: 8",
    )
    command.add_argument(
        "--policies",
        default="lru,gdsf",
        metavar="NAMES",
        help=f"of {', '.join(POLICIES)}; the last one also goes over the socket, "
        "under the middle budget. "
        "Default: lru,gdsf",
    )
    command.add_argument(
        "--budgets", default="10,20,40", metavar="PERCENTS", help="Default: 10,20,40"
    )
    command.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the stream. Default: 0"
    )
    options = command.parse_args()
    options.models = options.models or (150 if options.quick else 200)
    options.requests = options.requests or (2000 if options.quick else 20000)
    options.policies = options.policies.split(",")
    if set(options.policies) - set(POLICIES):
        command.error(f"--policies: choose of {', '.join(POLICIES)}")
    try:
        options.budgets = [int(percent) for percent in options.budgets.split(",")]
    except ValueError:
        command.error("--budgets: whole percents, separated by commas")
    if not all(0 < percent <= 100 for percent in options.budgets):
        command.error("--budgets: percents are from 1 to 100")
    return options


def main() -> None:
    """The command."""
    options = read_options()
    logs.configure("console", "warning")  # an engine's start and end are no news here
    plan, cells, socket = measure(options)
    finish(
        "zipf",
        options,
        figures(plan, cells, socket),
        {
            "models": len(plan.fleet),
            "bytes": sum(model.nbytes for model in plan.fleet),
            "requests": len(plan.stream),
            "alpha": options.alpha,
            "callers": plan.callers,
            "cells": [seen.shown() for seen in cells],
            "socket": {
                "policy": options.policies[-1],
                "budget_percent": over_the_socket(options.budgets),
                **socket,
            },
        },
        lambda path: draw(plan, cells, path),
    )


if __name__ == "__main__":
    main()
