"""The course of bench.hit: start all, ask them in turns, stop all.

Owns: the turns, and that a failed or wrong answer fails its row. Must not: know a
contender, or judge figures (bench/hit_results.py).
"""

import argparse
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import grpc
import torch
from rich.progress import Progress

from bench import h2load
from bench.busy import Others, load
from bench.floor_server import mlp
from bench.hit_results import Results, Round
from bench.peers import weights
from bench.peers.contender import Contender, Unavailable
from bench.peers.running import Running, begin
from bench.right import is_right
from bench.traffic import example, request

MODEL = "mlp"
WARM_UP = 600
"""Requests to each server at each concurrency before anything counts."""


class Course:
    """The whole measurement, contender by contender, round by round."""

    def __init__(
        self, options: argparse.Namespace, results: Results, progress: Progress
    ) -> None:
        self._options = options
        self._progress = progress
        self._request = request(MODEL).SerializeToString()
        self._rates: dict[tuple[str, int], float] = {}
        self._sizes: dict[str, int] = {}
        with torch.inference_mode():
            self._reference = mlp()(example())
        self.results = results

    def run(self, folder: Path, contenders: Sequence[Contender]) -> None:
        """Start all, measure in turns, stop all."""
        weights.write(folder)
        cores: str = self._options.server_cores
        with ExitStack() as stack:
            bar = self._progress.add_task("starting", total=len(contenders))
            started = begin(contenders, folder / "run", _models(folder), cores, stack)
            up = []
            for server in started:
                if self._came_up(server):
                    up.append(server)
                self._progress.advance(bar)
            client = h2load.Client(folder, self._request, self._options.client_cores)
            self._rounds(client, up)
            for server in up:
                self.results.memory[server.name] = server.tree.pss()

    def _came_up(self, server: Running) -> bool:
        try:
            server.wait_right(self._request, MODEL, self._right)
        except Unavailable as error:
            self.results.skipped[server.name] = str(error)
            server.stop()
            return False
        answer = server.ask(self._request, MODEL)
        self._sizes[server.name] = len(h2load.framed(answer))
        return True

    def _rounds(self, client: h2load.Client, up: list[Running]) -> None:
        levels: list[int] = self._options.concurrency
        total = (self._options.rounds + 1) * len(levels) * len(up)
        bar = self._progress.add_task("warming up", total=total)
        for number in range(self._options.rounds + 1):
            self._progress.update(
                bar, description=f"round {number}" if number else "warming up"
            )
            for concurrency in levels:
                for server in up if number % 2 else up[::-1]:
                    if server.name not in self.results.failed:
                        self._once(client, server, concurrency, number)
                    self._progress.advance(bar)
            self.results.loads.append(load())

    def _once(
        self, client: h2load.Client, server: Running, concurrency: int, number: int
    ) -> None:
        """One run of one server; number 0 only warms it up and tells its rate."""
        key = (server.name, concurrency)
        wanted = int(self._rates.get(key, 0.0) * self._options.seconds)
        asked = max(wanted, WARM_UP if number == 0 else 4 * concurrency)
        others, spent = Others(), server.tree.cpu_seconds()
        try:
            told = client.run(
                server.address,
                asked,
                concurrency,
                min(self._options.connections, concurrency),
            )
            self._check(server, told, asked)
        except (h2load.LoadFailed, grpc.RpcError) as error:
            self.results.failed[server.name] = f"c={concurrency}: {error}"
            return
        cpu = server.tree.cpu_seconds() - spent
        self._rates[key] = told.rate
        if number:
            seen = Round(
                rate=told.rate,
                p50=told.quantile(0.5),
                p99=told.quantile(0.99),
                cpu=cpu / asked,
                client=told.cpu / asked,
                others=others.share(cpu + told.cpu),
            )
            self.results.add(server.name, concurrency, seen)

    def _right(self, answer: bytes) -> bool:
        return is_right(answer, self._reference)

    def _check(self, server: Running, told: h2load.Told, asked: int) -> None:
        expected = self._sizes[server.name] * asked
        if told.data != expected:
            raise h2load.LoadFailed(
                f"{told.data} bytes of answers instead of {expected}: some were errors"
            )
        if not self._right(server.ask(self._request, MODEL)):
            raise h2load.LoadFailed("a wrong answer")


def _models(folder: Path) -> Callable[[Contender], Path]:
    """Where each finds the model: hotset in a store, the others in a file of arrays."""

    def of(contender: Contender) -> Path:
        ours = contender.name.startswith("hotset")
        return folder / (weights.STORE if ours else weights.ARRAYS)

    return of
