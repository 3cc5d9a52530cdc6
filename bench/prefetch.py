"""Does prefetch pay? The same bytes spent on guesses, and on the host tier instead.

On traces: a device of a tenth of the fleet and a host tier of 15 %, both least recently
used. Then 5 % more host memory: as host tier, or as `--prefetch`. What is compared is
how many requests had to wait for the store. Four kinds of traffic: ServeGen's tenants
(where ../shared is), Zipf with drift, pipelines of three models, and timed jobs. Loads
take no time here: it is what guessing can save at most.

Then a real engine over a store that answers after 30 ms, asked by pipelines, in turns
with and without: the waits of the cold starts.
"""

import argparse
import asyncio
import random
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.progress import Progress

from bench.families import SERVEGEN, Fleet, servegen, zipf
from bench.prefetch_plot import draw
from bench.result import Figure, console, finish, parser
from bench.storm import QUICK_WIDTHS, Plan, packed
from bench.traffic import request
from eviction.foresight import Foresight
from eviction.simulate.trace import Trace
from runtime import logs
from runtime.wire import decode

EPILOG = """examples:
  python -m bench.prefetch --quick
  python -m bench.prefetch --tag quiet"""

DEVICE, HOST, MORE = 0.10, 0.15, 0.05
CHAIN = 3
STEP_S = 0.2
"""Between two models of a pipeline."""


def drawn(name: str, events: Sequence[tuple[float, int]], models: int) -> Trace:
    """A trace of (time, model), in whatever order."""
    fleet = Fleet(models, 0)
    times, ids = zip(*sorted(events), strict=True)
    names = [f"m{index}" for index in range(models)]
    return Trace(name, times, ids, names, fleet.nbytes.tolist(), fleet.reload_s())


def pipelines(requests: int, models: int = 600) -> Trace:
    """Pipelines by Zipf's law; each asks its models one after the other."""
    chance, now, events = random.Random(0), 0.0, []
    weights = [1 / rank**0.9 for rank in range(1, models // CHAIN + 1)]
    for first in chance.choices(range(len(weights)), weights, k=requests // CHAIN):
        now += chance.expovariate(1.0)
        events += [(now + STEP_S * i, first * CHAIN + i) for i in range(CHAIN)]
    return drawn("pipelines", events, models)


def timed(requests: int, models: int = 400) -> Trace:
    """Each model once in its own period of a minute to an hour, give or take 5 %."""
    chance, events = random.Random(0), []
    for model in range(models):
        period = chance.uniform(60, 3600)
        now = chance.uniform(0, period)
        while now < 20 * 3600:
            events.append((now, model))
            now += period * chance.gauss(1.0, 0.05)
    return drawn("timed", sorted(events)[:requests], models)


@dataclass(slots=True)
class Bytes:
    """A tier of names, least recently used; `until`: when a guess is given up."""

    capacity: int
    held: int = 0
    there: OrderedDict[int, int] = field(default_factory=OrderedDict)
    until: dict[int, float] = field(default_factory=dict)

    def put(self, model: int, nbytes: int) -> Iterator[int]:
        """It comes; gives those who left for it."""
        if model not in self.there and nbytes <= self.capacity:
            self.there[model], self.held = nbytes, self.held + nbytes
        if model in self.there:
            self.there.move_to_end(model)
        while self.held > self.capacity:
            left, size = self.there.popitem(last=False)
            self.held -= size
            yield left

    def drop(self, model: int) -> None:
        """It goes."""
        self.held -= self.there.pop(model)


@dataclass(slots=True)
class Outcome:
    """Requests by where their bytes were, and guesses."""

    store: int = 0
    useful: int = 0
    fetched: int = 0


class Replay:
    """A trace through a device, a host tier, and perhaps guesses."""

    def __init__(self, trace: Trace, host: float, ahead: float) -> None:
        total = trace.total_bytes
        self._trace = trace
        self._device = Bytes(int(total * DEVICE))
        self._host = Bytes(int(total * host))
        self._ahead = Bytes(int(total * ahead))
        self._foresight = Foresight() if ahead else None
        self.outcome = Outcome()

    def run(self) -> Outcome:
        """All of it."""
        looked = 0.0
        for now, model in zip(self._trace.times, self._trace.ids, strict=True):
            self._ask(model)
            if self._foresight is None:
                continue
            self._foresight.told(str(model), now)
            hunches = self._foresight.following(str(model), now)
            if now - looked >= 1.0:
                looked, hunches = now, [*hunches, *self._foresight.due(now)]
            for hunch in hunches:
                self._guess(int(hunch.model), now, hunch.until)
        return self.outcome

    def _ask(self, model: int) -> None:
        nbytes = self._trace.nbytes
        if model not in self._device.there:
            if model in self._ahead.there:
                self._ahead.drop(model)
                self.outcome.useful += 1
            elif model not in self._host.there:
                self.outcome.store += 1
        for left in self._device.put(model, nbytes[model]):
            for _ in self._host.put(left, nbytes[left]):
                pass

    def _guess(self, model: int, now: float, until: float) -> None:
        ahead, nbytes = self._ahead, self._trace.nbytes[model]
        near = (self._device, self._host, ahead)
        if any(model in tier.there for tier in near):
            return
        for other in [m for m in ahead.there if ahead.until[m] <= now]:
            ahead.drop(other)
        if ahead.held + nbytes <= ahead.capacity:
            list(ahead.put(model, nbytes))
            ahead.until[model] = until
            self.outcome.fetched += 1


def on_traces(quick: bool, progress: Progress) -> dict[str, dict[str, float]]:
    """By traffic: store starts with guesses and with more host tier, of those with
    neither; and the share of guesses that were useful."""
    length = 10_000 if quick else 120_000
    made: list[Callable[[], Trace]] = [
        lambda: zipf(0, drift=0.1, name="zipf-drift"),
        lambda: pipelines(length),
        lambda: timed(length),
    ]
    if SERVEGEN.exists():
        made.insert(0, lambda: servegen(0))
    bar, found = progress.add_task("traces", total=len(made)), {}
    for make in made:
        trace = make().head(length)
        neither = Replay(trace, HOST, 0.0).run().store or 1
        more = Replay(trace, HOST + MORE, 0.0).run()
        ahead = Replay(trace, HOST, MORE).run()
        found[trace.name] = {
            "prefetch": ahead.store / neither,
            "host": more.store / neither,
            "useful": ahead.useful / (ahead.fetched or 1),
        }
        progress.advance(bar)
    return found


async def cold_waits(plan: Plan, sequences: Sequence[Sequence[str]]) -> list[float]:
    """Seconds of every request that met its model away from the device, once half of
    the sequences were seen."""
    found = []
    async with plan.engine(f"disk-{time.monotonic_ns()}") as engine:
        for index, models in enumerate(sequences):
            for model in models:
                asked = decode(request(model))
                began = time.perf_counter()
                answer = await engine.predict(asked)
                if answer.temperature != "hit" and 2 * index >= len(sequences):
                    found.append(time.perf_counter() - began)
                await asyncio.sleep(STEP_S / 2)
    return found


def on_an_engine(
    folder: Path, quick: bool, progress: Progress
) -> dict[str, list[float]]:
    """Cold waits with prefetch and without, in turns."""
    fleet = packed(folder / "store", 30 if quick else 90, QUICK_WIDTHS, progress)
    names = [model.name for model in fleet]
    chains = [names[at : at + CHAIN] for at in range(0, len(names), CHAIN)]
    chance, rounds = random.Random(0), 1 if quick else 2
    asked = [chance.choice(chains) for _ in range(40 if quick else 300)]
    found: dict[str, list[float]] = {"without": [], "with": []}
    bar = progress.add_task("engine", total=2 * rounds)
    for _ in range(rounds):
        for kind, waits in found.items():
            plan = Plan(folder, fleet, [], "cpu", ahead=MORE if kind == "with" else 0)
            waits += asyncio.run(cold_waits(plan, asked))
            progress.advance(bar)
    return found


def figures(
    traces: Mapping[str, Mapping[str, float]], engine: Mapping[str, Sequence[float]]
) -> dict[str, Figure]:
    """What is told. Below 1: fewer requests wait for the store than without either."""
    told: dict[str, Figure] = {}
    for name, one in traces.items():
        told[f"{name}_with_prefetch"] = Figure(
            one["prefetch"], "x", 0.6 if name in ("pipelines", "timed") else None
        )
        told[f"{name}_with_more_host"] = Figure(one["host"], "x")
        told[f"{name}_useful"] = Figure(one["useful"], "", None, "higher")
    means = mean_ms(engine)
    told["cold_wait_without"] = Figure(means["without"], "ms")
    told["cold_wait_with"] = Figure(means["with"], "ms")
    told["cold_wait_ratio"] = Figure(means["with"] / means["without"], "x", 0.8)
    return told


def mean_ms(engine: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Mean cold waits, without and with."""
    return {kind: 1e3 * sum(waits) / len(waits) for kind, waits in engine.items()}


def read_options() -> argparse.Namespace:
    """The command line."""
    return parser(__doc__, EPILOG).parse_args()


def main() -> None:
    """Measure and tell."""
    options = read_options()
    logs.configure("console", "warning")
    with tempfile.TemporaryDirectory() as name, Progress(console=console) as progress:
        traces = on_traces(options.quick, progress)
        engine = on_an_engine(Path(name), options.quick, progress)
    details = {"device": DEVICE, "host": HOST, "more": MORE, "traces": traces}
    finish(
        "prefetch", options, figures(traces, engine), details,
        lambda path: draw(traces, mean_ms(engine), path),
    )  # fmt: skip


if __name__ == "__main__":
    main()
