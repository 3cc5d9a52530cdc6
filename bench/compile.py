"""What --compile auto gives: eager against compiled, family by family.

Two measurements, each in turns within one run, medians of the rounds:

    forward   the graph alone, called in this process at 1 and 8 rows, by CPU time
    server    two `hotset serve`, one with --compile auto, 8 callers of one row each:
              requests a second and the server's CPU seconds a request

The libraries are compiled first, one family after another, as a server does it (in a
process of its own at the lowest priority), into a cache that both measurements use; the
seconds of that are told. Every answer is compared: compiled and eager agree within
1e-4 of the largest value, or the bench fails.
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import repeat
from pathlib import Path
from statistics import median

import torch
from rich.progress import Progress

from bench.client import closed_loop, dialled
from bench.compile_families import FAMILIES, Family, spec_of
from bench.compile_plot import draw
from bench.drift import status
from bench.peers import venvs
from bench.process import Server, hotset, servers
from bench.result import Figure, console, finish, parser
from bench.wire_request import outputs_of, request_of
from loader.code_cache import CodeCache
from loader.compile_job import job_inputs, write_job
from loader.compiled import Compiled, Library
from loader.generated import Forward
from loader.graph import Graph, read_graph
from loader.linear import prefer_onednn
from loader.onednn import compared, open_onednn, operator
from loader.weights import unpack
from runtime.compile_process import compiled_apart, job_folder
from runtime.datatypes import TORCH

EPILOG = """examples:
  python -m bench.compile --quick                    the small transformer only
  python -m bench.compile                            about 8 minutes
  python -m bench.compile --only mlp,minilm --rounds 9"""

ROWS = (1, 8)
CALLERS = 8
FORWARD_S = 0.2
"""Of one round of one side."""
GOAL = 1.0
"""Compiled must not be slower; by how much it is faster is for the reader."""
TOLERANCE = 1e-4
WAIT_S = 120.0


@dataclass(slots=True)
class Found:
    """Of one family. Ratios are eager by compiled: more is better."""

    compile_s: float = 0.0
    forward_us: dict[str, list[float]] = field(default_factory=dict)
    rps: dict[str, list[float]] = field(default_factory=dict)
    cpu_us: dict[str, list[float]] = field(default_factory=dict)
    skipped: str = ""

    def add(self, where: dict[str, list[float]], key: str, value: float) -> None:
        """One round more."""
        where.setdefault(key, []).append(value)

    def speedup(self, rows: int) -> float:
        """Of the forward alone."""
        return median(self.forward_us[f"eager_{rows}"]) / median(
            self.forward_us[f"compiled_{rows}"]
        )

    def served(self) -> float:
        """Requests a second, compiled by eager."""
        return median(self.rps["compiled"]) / median(self.rps["eager"])

    def spent(self) -> float:
        """Server CPU a request, eager by compiled."""
        return median(self.cpu_us["eager"]) / median(self.cpu_us["compiled"])


class Bench:
    """All families."""

    def __init__(
        self, options: argparse.Namespace, folder: Path, progress: Progress
    ) -> None:
        self._options = options
        self._store = folder / "store"
        self._folder = folder
        # A second --quick finds what the first had compiled.
        kept = venvs.home() / "compiled" if options.quick else folder / "code"
        self._cache = CodeCache(kept)
        self._onednn_from = compared(operator()).onednn_from
        self._onednn = open_onednn(self._onednn_from)
        self._progress = progress
        self.found: dict[str, Found] = {}

    def run(self, families: Sequence[Family]) -> None:
        """Compile, call, serve."""
        bar = self._progress.add_task("compile", total=3 * len(families))
        for family in families:
            found = self.found[family.name] = Found()
            found.skipped = family.missing(not self._options.quick)
            for step in (self._compile, self._forward, self._serve):
                if not found.skipped:
                    name = step.__name__.strip("_")
                    self._progress.update(bar, description=f"{family.name}: {name}")
                    step(family, found)
                self._progress.advance(bar)

    def _there(self, family: Family) -> Path:
        return self._store / family.name / "1"

    def _compile(self, family: Family, found: Found) -> None:
        there = self._there(family)
        family.pack(there)
        graph, weights = self._read(family)
        spec = spec_of(there, family.name)
        dtypes = [TORCH[tensor.datatype] for tensor in spec.inputs]
        with job_folder() as folder:
            text = (there / "graph.json").read_bytes()
            inputs = job_inputs(spec, dtypes)
            write_job(folder, text, inputs, weights, self._onednn_from)
            began = time.perf_counter()
            result = asyncio.run(compiled_apart(folder, self._cache.folder))
            found.compile_s = time.perf_counter() - began
        if result.reason:
            found.skipped = result.reason
            return
        self._key = result.key
        self._graph, self._weights = graph, weights

    def _read(self, family: Family) -> tuple[Graph, tuple[torch.Tensor, ...]]:
        there = self._there(family)
        graph = read_graph((there / "graph.json").read_bytes(), torch.device("cpu"))
        prefer_onednn(graph, self._onednn)
        data = (there / "model.safetensors").read_bytes()
        return graph, unpack(data, graph.weights)

    def _forward(self, family: Family, found: Found) -> None:
        entry = self._cache.find(self._key)
        if entry is None:
            raise SystemExit(f"{family.name}: what was compiled is not in its cache")
        graph, count = self._graph, len(self._weights)
        library = Library(entry.library, count, entry.terms, 1)
        compiled = Compiled(graph.eager, library, count, entry.terms)
        with torch.inference_mode():
            for rows in ROWS:
                given = family.inputs(rows)
                tensors = (*self._weights, *[given[name] for name in graph.inputs])
                check(family.name, compiled(*tensors), graph.eager(*tensors))
                sides: dict[str, Forward] = {"eager": graph.eager, "compiled": compiled}
                for number in range(self._options.rounds):
                    for side in sorted(sides, reverse=bool(number % 2)):
                        took = timed(sides[side], tensors)
                        found.add(found.forward_us, f"{side}_{rows}", 1e6 * took)
        if compiled.declined:
            raise SystemExit(f"{family.name}: some calls were not compiled ones")

    def _serve(self, family: Family, found: Found) -> None:
        code = ("--compile", "auto", "--compile-after", "0")
        cached = ("--compile-cache", str(self._cache.folder))
        commands = [
            ("eager", hotset(self._store)),
            ("compiled", hotset(self._store, *code, *cached)),
        ]
        message = request_of(family.name, family.inputs(1))
        with servers(commands, self._folder) as up:
            asyncio.run(self._turns(up, message.SerializeToString(), found))

    async def _turns(self, up: Sequence[Server], message: bytes, found: Found) -> None:
        async with dialled(up[0].grpc) as eager, dialled(up[1].grpc) as compiled:
            answers = [outputs_of(await call(message)) for call in (eager, compiled)]
            check(up[1].name, *answers)
            await until_compiled(up[1])
            pairs = list(zip(up, (eager, compiled), strict=True))
            for number in range(self._options.rounds + 1):
                for server, call in pairs:
                    spent = server.cpu_seconds()
                    seen = await closed_loop(
                        call, repeat(message), CALLERS, self._options.seconds
                    )
                    check(server.name, outputs_of(seen.last), answers[0])
                    if number:  # the first warms up
                        cpu = (server.cpu_seconds() - spent) / len(seen.latencies)
                        found.add(found.rps, server.name, seen.rate)
                        found.add(found.cpu_us, server.name, 1e6 * cpu)
                pairs.reverse()


def timed(forward: Forward, tensors: Sequence[torch.Tensor]) -> float:
    """CPU seconds a call, over FORWARD_S: what else runs here is not counted."""
    count, began = 0, time.thread_time()
    while True:
        for _ in range(4):
            forward(*tensors)
        count += 4
        took = time.thread_time() - began
        if took > FORWARD_S:
            return took / count


async def until_compiled(server: Server) -> None:
    """Its library comes from the cache, tried once more: some seconds."""
    until, states = time.monotonic() + WAIT_S, [""]
    while time.monotonic() < until:
        told = await asyncio.to_thread(status, server)
        states = [graph.state for graph in told.compiled]
        if states == ["compiled"]:
            return
        if "refused" in states:
            break
        await asyncio.sleep(0.2)
    raise SystemExit(f"{server.name}: its graph was not compiled: {states}")


def check(
    name: str, ours: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor]
) -> None:
    """Compiled answers are right, or there is nothing to measure."""
    for mine, wanted in zip(ours, theirs, strict=True):
        gap = (mine - wanted).abs().max()
        if not gap <= TOLERANCE * wanted.abs().max():
            raise SystemExit(f"{name}: answers differ by {float(gap):g}")


def figures(found: dict[str, Found]) -> dict[str, Figure]:
    """Ratios by family."""
    told: dict[str, Figure] = {}
    for name, seen in found.items():
        if seen.skipped:
            continue
        for rows in ROWS:
            told[f"{name}_forward_{rows}_speedup"] = _ratio(seen.speedup(rows))
        told[f"{name}_rps_ratio"] = _ratio(seen.served())
        told[f"{name}_cpu_ratio"] = _ratio(seen.spent())
        told[f"{name}_compile_s"] = Figure(seen.compile_s, "s")
    return told


def _ratio(value: float) -> Figure:
    return Figure(value, "x", GOAL, "higher")


def read_options() -> argparse.Namespace:
    """The command line."""
    command = parser(__doc__, EPILOG)
    names = [family.name for family in FAMILIES]
    command.add_argument("--rounds", type=int, metavar="N",
                         help="Default: 9, quick 3")  # fmt: skip
    command.add_argument("--seconds", type=float, metavar="S",
                         help="of a server's turn. Default: 2, quick 0.5")  # fmt: skip
    command.add_argument("--only", default="", metavar="NAMES",
                         help=f"of {','.join(names)}. Default: all, "
                         "quick former")  # fmt: skip
    options = command.parse_args()
    options.rounds = options.rounds or (3 if options.quick else 9)
    options.seconds = options.seconds or (0.5 if options.quick else 2.0)
    chosen = options.only.split(",") if options.only else names
    if options.quick and not options.only:
        chosen = ["former"]
    if set(chosen) - set(names):
        command.error(f"--only: some of {', '.join(names)}")
    options.families = [family for family in FAMILIES if family.name in chosen]
    return options


def main() -> None:
    """The command."""
    options = read_options()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, Progress(console=console) as progress:
        bench = Bench(options, Path(folder), progress)
        bench.run(options.families)
    for name, seen in bench.found.items():
        if seen.skipped:
            console.print(f"{name}: left out, {seen.skipped}")
    details = {name: asdict(seen) for name, seen in bench.found.items()}
    finish(
        "compile",
        options,
        figures(bench.found),
        details,
        lambda path: draw(bench.found, path),
    )


if __name__ == "__main__":
    main()
