"""Drift: the default policy against LRU on real servers while the traffic wanders.

300 MLPs of mixed sizes lie in a store that answers after 30 ms; a tenth of their bytes
fits. Popularity is Zipf 0.9, and drifts: every 50 requests two models trade places.
Two servers, one a policy, get the same stream in alternating turns, so that whatever
else the machine does is shared.

A cold wait is the time to the answer of a request that did not find its model resident
(as many of the slowest as the server counted such); mean and p99 of those, the mean
over all requests, and loads a second of serving. Which models are asked for decides
how long a cold wait is, and which are kept decides how many there are: a policy that
keeps many small ones leaves the larger to be waited for, so the mean over *all*
requests is what it should be judged by.

Each server's own access log is then replayed by the simulator (eviction/simulate/
waits.py): what it says of loads and waits stands beside what was measured.
"""

import argparse
import asyncio
import random
import tempfile
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path

from rich.progress import Progress

from bench.client import Call, closed_loop, dialled, quantile
from bench.process import Server, servers
from bench.result import Figure, console, finish, parser
from bench.traffic import Stored, fleet, request, shares
from eviction.policies import DEFAULT, POLICIES
from eviction.simulate.waits import Machine, simulate_waits
from runtime.bounds import Bounds
from runtime.engine import Snapshot
from runtime.report import decode
from runtime.trace_file import read_trace

EPILOG = """examples:
  python -m bench.drift --quick
  python -m bench.drift --policies lru,gdsf"""

ALPHA, BUDGET = 0.9, 0.1
TRADE_EVERY = 50
RUN_S = 0.002
"""What a forward pass pins its model for, in the simulator."""
TURN = 250
"""Requests of one server before the other gets the same."""


@dataclass(slots=True)
class Seen:
    """What one policy's clients and server saw."""

    latencies: list[float] = field(default_factory=list)
    seconds: float = 0.0
    cold: int = 0
    loads: int = 0
    foretold_loads: int = 0
    foretold_mean_s: float = 0.0

    def waits(self) -> list[float]:
        """The cold ones, ascending."""
        return sorted(self.latencies)[len(self.latencies) - self.cold :]


def drifting(names: Sequence[str], length: int, seed: int) -> list[str]:
    """A Zipf stream over ranks that trade places."""
    chance = random.Random(seed)
    ranked = list(names)
    chance.shuffle(ranked)
    cumulative = list(accumulate(shares(len(ranked), ALPHA)))
    stream: list[str] = []
    while len(stream) < length:
        a, b = chance.sample(range(len(ranked)), 2)
        ranked[a], ranked[b] = ranked[b], ranked[a]
        stream += chance.choices(ranked, cum_weights=cumulative, k=TRADE_EVERY)
    return stream[:length]


async def alternate(
    up: Sequence[Server], stream: Sequence[str], seconds: float, callers: int
) -> dict[str, Seen]:
    """Turn by turn, who goes first changing, until each has had its seconds."""
    seen = {server.name: Seen() for server in up}
    with Progress(console=console) as progress:
        bar = progress.add_task("drift", total=seconds * len(up))
        async with dialled(up[0].grpc) as first, dialled(up[1].grpc) as second:
            pairs = [(up[0].name, first), (up[1].name, second)]
            for at in range(0, len(stream), TURN):
                for name, call in pairs:
                    await turn(call, stream[at : at + TURN], callers, seen[name])
                pairs.reverse()
                spent = [one.seconds for one in seen.values()]
                progress.update(bar, completed=sum(spent))
                if min(spent) > seconds:
                    break
    for server in up:
        told = status(server)
        seen[server.name].loads = told.loads
        seen[server.name].cold = told.requests["wait"] + told.requests["miss"]
    return seen


async def turn(call: Call, names: Sequence[str], callers: int, seen: Seen) -> None:
    """One server, one stretch of the stream."""
    requests = iter([request(name).SerializeToString() for name in names])
    found = await closed_loop(call, requests, callers)
    seen.latencies += found.latencies
    seen.seconds += found.seconds


def status(server: Server) -> Snapshot:
    """The server's own report."""
    with urllib.request.urlopen(f"http://{server.http}/hotset/status") as answer:
        return decode(answer.read()).snapshot


def measure(options: argparse.Namespace) -> tuple[list[Stored], dict[str, Seen]]:
    """The whole."""
    with tempfile.TemporaryDirectory() as name:
        store = Path(name) / "store"
        models = fleet(store, options.models)
        budget = max(
            int(BUDGET * sum(model.nbytes for model in models)),
            2 * max(model.nbytes for model in models),
        )
        stream = drifting([model.name for model in models], 200_000, options.seed)
        logs = {policy: Path(name) / f"{policy}.csv" for policy in options.policies}
        commands = [
            (policy, ["bench.drift_server", "--store", str(store), "--policy", policy,
                      "--budget", str(budget), "--access-log", str(log)])
            for policy, log in logs.items()
        ]  # fmt: skip
        with servers(commands, Path(name)) as up:
            found = asyncio.run(alternate(up, stream, options.seconds, options.callers))
        for policy, log in logs.items():  # whole, now that the servers have ended
            foretell(log, policy, budget, found[policy])
        return models, found


def foretell(log: Path, policy: str, budget: int, seen: Seen) -> None:
    """What the simulator makes of the traffic the server logged."""
    trace, _ = read_trace(log)
    machine = Machine(budget, slots=Bounds().concurrent_loads, run_s=RUN_S)
    waits = simulate_waits(trace, POLICIES[policy](), machine)
    seen.foretold_loads, seen.foretold_mean_s = waits.loads, waits.mean


def figures(found: dict[str, Seen]) -> dict[str, Figure]:
    """By policy, and the second relative to the first."""
    numbers: dict[str, dict[str, float]] = {}
    for policy, seen in found.items():
        waits = seen.waits() or [0.0]
        numbers[policy] = {
            "cold_mean_ms": 1e3 * sum(waits) / len(waits),
            "cold_p99_ms": 1e3 * quantile(waits, 0.99),
            "mean_ms": 1e3 * sum(seen.latencies) / len(seen.latencies),
            "p99_ms": 1e3 * quantile(seen.latencies, 0.99),
            "loads_per_s": seen.loads / seen.seconds,
            "loads_per_request": seen.loads / len(seen.latencies),
            "simulated_loads_per_request": seen.foretold_loads / len(seen.latencies),
            "simulated_mean_ms": 1e3 * seen.foretold_mean_s,
        }
    told = {
        f"{key}_{policy}": Figure(value, "ms" if key.endswith("ms") else "")
        for policy, values in numbers.items()
        for key, value in values.items()
    }
    base, other = numbers.values()
    for key in ("mean_ms", "loads_per_request"):
        told[f"{key}_ratio"] = Figure(other[key] / max(base[key], 1e-9), goal=1.0)
    return told


def draw(found: dict[str, Seen], path: Path) -> None:
    """The share of requests answered within a time, a line a policy."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, pane = pyplot.subplots(figsize=(7, 4))
    for policy, seen in found.items():
        ordered = sorted(value * 1e3 for value in seen.latencies)
        above = [1 - rank / len(ordered) for rank in range(len(ordered))]
        pane.step(ordered, above, label=f"{policy} ({seen.loads} loads)", where="post")
    pane.set_xscale("log")
    pane.set_yscale("log")
    pane.set_xlabel("milliseconds to the answer")
    pane.set_ylabel("share of the requests that took longer")
    pane.set_title("drifting traffic, real servers")
    pane.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def read_options() -> argparse.Namespace:
    """The command line."""
    command = parser(__doc__, EPILOG)
    command.add_argument(
        "--models", type=int, metavar="N", help="Default: 300, quick 150"
    )
    command.add_argument(
        "--seconds",
        type=float,
        metavar="S",
        help="of traffic for each policy. Default: 180, quick 12",
    )
    command.add_argument(
        "--callers", type=int, default=4, metavar="N", help="at a time. Default: 4"
    )
    command.add_argument(
        "--policies", default=f"lru,{DEFAULT}", metavar="TWO", help="the first is the "
        f"base. Default: lru,{DEFAULT}",
    )  # fmt: skip
    command.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the stream. Default: 0"
    )
    options = command.parse_args()
    options.models = options.models or (150 if options.quick else 300)
    options.seconds = options.seconds or (12.0 if options.quick else 180.0)
    options.policies = options.policies.split(",")
    if len(set(options.policies)) != 2 or set(options.policies) - set(POLICIES):
        command.error(f"--policies: two of {', '.join(POLICIES)}")
    return options


def main() -> None:
    """The command."""
    options = read_options()
    models, found = measure(options)
    details = {
        "models": len(models),
        "fleet_bytes": sum(model.nbytes for model in models),
        "budget": BUDGET,
        "alpha": ALPHA,
        "trade_every": TRADE_EVERY,
        "requests": {policy: len(seen.latencies) for policy, seen in found.items()},
    }
    finish("drift", options, figures(found), details, lambda path: draw(found, path))


if __name__ == "__main__":
    main()
