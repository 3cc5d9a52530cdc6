"""Swap storm: many models, little room, and where each cold start came from.

A fleet of MLPs (1 to 50 MB; --quick: 0.1 to 5 MB) lies behind a store that answers
after 30 ms. A quarter of its bytes fits on the device, 15 % more in the host tier, 60 %
more in the disk tier. One caller asks a Zipf stream through the whole engine, in
process; each request is counted for the tier that served it: hit (resident), host,
disk, store.

Then interference: one resident model is asked at a fixed rate, in turns alone and while
two callers keep loading others: half a second each, so that whatever else the machine
does falls on both alike. Its p99 may grow by half, no more. A third turn is beside a
stranger that reads and hashes the same files as fast as it can, at the rank and on the
cores of a porter: what the bytes alone cost (`bound_reading`). All models were loaded
once before: a server that has been up.
"""

import argparse
import asyncio
import contextlib
import random
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.progress import Progress

from bench.far import Far
from bench.floor_server import mlp
from bench.interference import Disturbed, interference
from bench.result import Figure, console, finish, parser
from bench.traffic import Stored, example, request, zipf
from loader.pack import export, write
from runtime import collector, logs
from runtime.compose import composed
from runtime.counts import Counts
from runtime.engine import Engine
from runtime.sources import load
from runtime.wire import decode

EPILOG = """examples:
  python -m bench.storm --quick
  python -m bench.storm --models 300 --requests 4000
  python -m bench.storm --device cuda:0 --tag h200"""

BUDGET, HOST, DISK = 0.25, 0.15, 0.6
TIERS = ("hit", "host", "disk", "store")
PART_OF_STORE = {"host": 0.25, "disk": 0.6}
"""What a start from these tiers may take of one from the store, medians."""
WIDTHS = (512, 724, 1024, 1448, 2048, 2896, 3500)
TURNS = 60
"""Of each kind: the p99 of 2,700 requests, half of these turns, swung by 40 %."""
QUICK_WIDTHS = (150, 256, 400, 640, 1000)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is asked, of what, in which room."""

    folder: Path
    fleet: Sequence[Stored]
    stream: Sequence[str]
    device: str
    ahead: float = 0.0
    """Of the fleet, for what is prefetched."""

    def share(self, part: float) -> str:
        """So much of the fleet's bytes."""
        return str(int(sum(model.nbytes for model in self.fleet) * part))

    @contextlib.asynccontextmanager
    async def engine(self, disk: str) -> AsyncIterator[Engine]:
        """A cold engine. `disk`: a folder for its disk tier."""
        flags = {
            "store": str(self.folder / "store"),
            "device": self.device,
            "budget": self.share(BUDGET),
            "host_cache": self.share(HOST),
            "disk_cache": str(self.folder / disk),
            "disk_cache_size": self.share(DISK),
            "prefetch": self.share(self.ahead),
        }
        store = Far.open(str(self.folder / "store"))
        settings = load(flags, None, {})
        async with composed(settings, Counts(), store=store) as engine:
            yield engine


def packed(
    folder: Path, count: int, widths: Sequence[int], progress: Progress
) -> list[Stored]:
    """The fleet: a graph a width, weights of their own each."""
    chance, bar = random.Random(0), progress.add_task("packing models", total=count)
    graphs = {width: export(mlp(width), {"x": example()}) for width in widths}
    made = []
    for index in range(count):
        name, width = f"mlp-{index:04d}", chance.choice(widths)
        weights = mlp(width, seed=index).state_dict()
        done = write(graphs[width], folder / name / "1", weights=weights)
        made.append(Stored(name, done.spec.weights.size))
        progress.advance(bar)
    return made


async def storm(plan: Plan, progress: Progress) -> dict[str, list[float]]:
    """Seconds of each request, by the tier that served it."""
    found: dict[str, list[float]] = {tier: [] for tier in TIERS}
    asked = {model.name: decode(request(model.name)) for model in plan.fleet}
    bar = progress.add_task("storm", total=len(plan.stream))
    async with plan.engine("disk") as engine:
        for name in plan.stream:
            before = dict((await engine.snapshot()).tiers.loads)
            began = time.perf_counter()
            answer = await engine.predict(asked[name])
            seconds = time.perf_counter() - began
            tier = "hit"
            if answer.temperature != "hit":
                after = (await engine.snapshot()).tiers.loads
                tier = next(t for t in after if after[t] > before.get(t, 0))
            found[tier].append(seconds)
            progress.advance(bar)
        seen = await engine.snapshot()
        assert seen.peak_held <= seen.capacity
        assert seen.tiers.space.reserved <= seen.capacity
    return found


def quantile(values: Sequence[float], share: float) -> float:
    """A quantile in milliseconds; 0 of nothing."""
    ordered = sorted(values)
    if not ordered:
        return 0.0
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] * 1e3


def figures(
    found: Mapping[str, Sequence[float]], disturbed: Disturbed
) -> dict[str, Figure]:
    """Quantiles by tier, and what the loads cost a resident model."""
    told: dict[str, Figure] = {}
    for tier, values in found.items():
        told[f"{tier}_p50"] = Figure(quantile(values, 0.5), "ms")
        told[f"{tier}_p99"] = Figure(quantile(values, 0.99), "ms")
        told[f"{tier}_requests"] = Figure(len(values), "", None, "higher")
    far = quantile(found["store"], 0.5) or 1.0
    for tier, goal in PART_OF_STORE.items():
        told[f"{tier}_to_store"] = Figure(quantile(found[tier], 0.5) / far, "x", goal)
    for name, values in (
        ("alone", disturbed.alone),
        ("among", disturbed.among),
        ("beside", disturbed.beside),
    ):
        for label, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99)):
            told[f"resident_{name}_{label}"] = Figure(quantile(values, share), "ms")
    calm, loud = quantile(disturbed.alone, 0.99), quantile(disturbed.among, 0.99)
    told["loads_beside"] = Figure(disturbed.loads, "", None, "higher")
    told["interference"] = Figure(loud / calm, "x", 1.5)
    told["files_read_beside"] = Figure(disturbed.read, "", None, "higher")
    told["bound_reading"] = Figure(quantile(disturbed.beside, 0.99) / calm, "x")
    return told


def draw(found: Mapping[str, Sequence[float]], path: Path) -> None:
    """The share of requests served within a time, a line a tier."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, pane = pyplot.subplots(figsize=(7, 4))
    for tier, values in found.items():
        if values:
            ordered = sorted(value * 1e3 for value in values)
            shares = [(rank + 1) / len(ordered) for rank in range(len(ordered))]
            pane.step(ordered, shares, label=f"{tier} ({len(ordered)})", where="post")
    pane.set_xscale("log")
    pane.set_xlabel("milliseconds to the answer")
    pane.set_ylabel("share of the requests")
    pane.set_title("by the tier that served them")
    pane.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def read_options() -> argparse.Namespace:
    """The command line."""
    command = parser(__doc__, EPILOG)
    command.add_argument("--models", type=int, metavar="N", help="Default: 300")
    command.add_argument("--requests", type=int, metavar="N", help="Default: 4000")
    command.add_argument("--device", default="cpu", help="Default: cpu")
    options = command.parse_args()
    options.models = options.models or (100 if options.quick else 300)
    options.requests = options.requests or (1500 if options.quick else 4000)
    return options


def main() -> None:
    """Measure and tell."""
    options = read_options()
    logs.configure("console", "warning")
    widths = QUICK_WIDTHS if options.quick else WIDTHS
    with tempfile.TemporaryDirectory() as name, Progress(console=console) as progress:
        folder = Path(name)
        fleet = packed(folder / "store", options.models, widths, progress)
        stream = zipf([model.name for model in fleet], 1.0, options.requests)
        plan = Plan(folder, fleet, stream, options.device)
        with collector.settled():  # as a server does
            found = asyncio.run(storm(plan, progress))
            disturbed = asyncio.run(interference(plan, 6 if options.quick else TURNS))
    details = {
        "models": len(fleet),
        "fleet_bytes": sum(model.nbytes for model in fleet),
        "budget": BUDGET, "host_tier": HOST, "disk_tier": DISK,
        "store_delay_s": Far.delay,
    }  # fmt: skip
    finish(
        "storm", options, figures(found, disturbed), details,
        lambda path: draw(found, path), options.device,
    )  # fmt: skip


if __name__ == "__main__":
    main()
