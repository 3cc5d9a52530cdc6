"""32 models of one graph, one request each in a turn of the loop: one call or 32.

Two engines in this process, each with all models resident; the only difference is
--cross-batching. They are asked in turns, each turn a request to every model at once,
decoded from bytes as a front end hands them over. Reported is, for each graph, the
ratio of one by one to together, in requests a second (median of the rounds) and in CPU;
their answers are compared first. A graph for which the trial at first use said no runs
one by one in both, and its ratio is 1 but for noise.

    mlp_small      64-64-64-10, 36 KB of weights: calls cost more than numbers
    mlp            64-256-256-10, 340 KB
    transformer    two encoder layers, 64 wide, 16 tokens: 60 small ops
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import structlog
import torch
from rich.progress import Progress
from torch import nn

from bench.floor_server import WIDTH, mlp
from bench.result import Figure, console, finish, parser
from bench.traffic import example
from loader.pack import export, write
from protos import open_inference_pb2 as pb
from runtime.compose import composed
from runtime.counts import Counts
from runtime.local import LocalEngine
from runtime.sources import load
from runtime.wire import decode, encode

EPILOG = """examples:
  python -m bench.cross --quick
  python -m bench.cross --rounds 60 --models 64
  python -m bench.cross --device cuda:0 --tag h200"""

WARM_UP = 40
"""Turns before anything counts: calls have to show that they are short."""


class Encoder(nn.Module):
    """A small transformer over 16 tokens of 64 numbers."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        layer = nn.TransformerEncoderLayer(64, 2, 128, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(64, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Class scores."""
        scores: torch.Tensor = self.head(self.layers(x).mean(1))
        return scores


TOKENS = torch.linspace(-1, 1, 16 * WIDTH).reshape(1, 16, WIDTH)

Make = Callable[[int], nn.Module]
GRAPHS: dict[str, tuple[Make, torch.Tensor]] = {
    "mlp_small": (lambda seed: mlp(64, seed=seed), example()),
    "mlp": (lambda seed: mlp(seed=seed), example()),
    "transformer": (lambda seed: Encoder(seed).eval(), TOKENS),
}


GOALS = {"mlp_small": 1.25, "mlp": 0.9, "transformer": 1.25}
"""The weights of `mlp` are most of its work: there it must do no harm."""


@dataclass(slots=True)
class Seen:
    """One engine: seconds and CPU seconds of a request, by round."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


@dataclass(slots=True)
class Found:
    """One graph, both engines."""

    together: Seen
    alone: Seen

    def ratio(self, of: Callable[[Seen], list[float]]) -> float:
        """One by one / together: the median of the rounds' ratios."""
        pairs = zip(of(self.alone), of(self.together), strict=True)
        return median(alone / together for alone, together in pairs)


def stored(folder: Path, make: Make, x: torch.Tensor, count: int) -> list[bytes]:
    """The models in a store, and a request for each."""
    program = export(make(0), {"x": x})
    messages = []
    for index in range(count):
        name = f"m{index}"
        write(program, folder / name / "1", weights=make(index).state_dict())
        asked = pb.ModelInferRequest(
            model_name=name, raw_input_contents=[x.numpy().tobytes()]
        )
        asked.inputs.add(name="x", datatype="FP32", shape=x.shape)
        messages.append(asked.SerializeToString())
    return messages


async def turn(engine: LocalEngine, messages: list[bytes]) -> list[bytes]:
    """A request to every model, all in one turn of the loop."""

    async def one(message: bytes) -> bytes:
        asked = decode(pb.ModelInferRequest.FromString(message))
        return encode(await engine.predict(asked)).SerializeToString()

    return await asyncio.gather(*map(one, messages))


def same(together: list[bytes], alone: list[bytes]) -> None:
    """Raises AssertionError unless both gave the same answers."""
    for pair in zip(together, alone, strict=True):
        ours, theirs = [pb.ModelInferResponse.FromString(said) for said in pair]
        got, wanted = [
            torch.frombuffer(bytearray(said.raw_output_contents[0]), dtype=torch.float)
            for said in (ours, theirs)
        ]
        torch.testing.assert_close(got, wanted)


async def measure(
    options: argparse.Namespace, name: str, told: Callable[[], object]
) -> Found:
    """Both engines over one graph."""
    with tempfile.TemporaryDirectory() as folder:
        messages = stored(Path(folder), *GRAPHS[name], options.models)
        async with AsyncExitStack() as stack:
            engines = []
            for shared in (True, False):
                given = {
                    "store": folder,
                    "device": options.device,
                    "cross_batching": shared,
                }
                block = composed(load(given, None, {}), Counts())
                engines.append(await stack.enter_async_context(block))
            return await rounds(options, engines, messages, told)


async def rounds(
    options: argparse.Namespace,
    engines: list[LocalEngine],
    messages: list[bytes],
    told: Callable[[], object],
) -> Found:
    """Warm up, compare, and ask in turns."""
    for _ in range(2):
        for engine in engines:
            for _ in range(WARM_UP):
                await turn(engine, messages)
        await asyncio.sleep(options.trial)  # what is tried behind the first requests
    same(*[await turn(engine, messages) for engine in engines])
    found = Found(Seen(), Seen())
    for index in range(options.rounds):
        pairs = list(zip(engines, (found.together, found.alone), strict=True))
        for engine, seen in pairs if index % 2 else reversed(pairs):
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in range(options.turns):
                await turn(engine, messages)
            share = options.turns * len(messages)
            seen.wall.append((time.perf_counter() - wall) / share)
            seen.cpu.append((time.process_time() - cpu) / share)
        told()
    return found


def draw(found: dict[str, Found], path: Path) -> None:
    """Microseconds a request, beside each other."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, pane = pyplot.subplots(figsize=(7, 4))
    for shift, label in ((-0.2, "one by one"), (0.2, "together")):
        values = [
            median((f.alone if shift < 0 else f.together).wall) * 1e6
            for f in found.values()
        ]
        bars = pane.bar([i + shift for i in range(len(found))], values, 0.4)
        bars.set_label(label)
        pane.bar_label(bars, [f"{value:.0f}" for value in values])
    pane.set_xticks(range(len(found)), list(found))
    pane.set_ylabel("microseconds a request, in process")
    pane.set_title("Models of one graph, a request each at once")
    pane.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def read_options() -> argparse.Namespace:
    """The command line."""
    command = parser(__doc__, EPILOG)
    command.add_argument(
        "--models", type=int, default=32, metavar="N", help="models. Default: 32"
    )
    command.add_argument(
        "--rounds", type=int, metavar="N", help="rounds. Default: 40, quick 12"
    )
    command.add_argument(
        "--turns",
        type=int,
        default=10,
        metavar="N",
        help="turns of an engine in a round. Default: 10",
    )
    command.add_argument(
        "--device", default="cpu", metavar="NAME", help="device. Default: cpu"
    )
    command.add_argument(
        "--only", default="", metavar="NAMES", help="graphs, with commas between"
    )
    options = command.parse_args()
    options.rounds = options.rounds or (12 if options.quick else 40)
    options.trial = 1.5 if options.quick else 4.0
    options.names = options.only.split(",") if options.only else list(GRAPHS)
    return options


def main() -> None:
    """The command."""
    options = read_options()
    torch.set_num_threads(1)
    quiet = structlog.make_filtering_bound_logger(40)
    structlog.configure(wrapper_class=quiet)
    found: dict[str, Found] = {}
    with Progress(console=console) as progress:
        bar = progress.add_task("turns", total=options.rounds * len(options.names))
        for name in options.names:
            found[name] = asyncio.run(
                measure(options, name, lambda: progress.advance(bar))
            )
    figures = {}
    for name, seen in found.items():
        ratio = seen.ratio(lambda s: s.wall)
        figures[f"{name}_one_by_one_to_together"] = Figure(
            ratio, "x", GOALS[name], "higher"
        )
        cpu = seen.ratio(lambda s: s.cpu)
        figures[f"{name}_cpu_one_by_one_to_together"] = Figure(cpu, "x")
    details = {
        name: {
            "together_us": [round(value * 1e6, 2) for value in seen.together.wall],
            "one_by_one_us": [round(value * 1e6, 2) for value in seen.alone.wall],
        }
        for name, seen in found.items()
    }
    finish(
        "cross",
        options,
        figures,
        {"models": options.models, "graphs": details},
        lambda path: draw(found, path),
        options.device,
    )


if __name__ == "__main__":
    main()
