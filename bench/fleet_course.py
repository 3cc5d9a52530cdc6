"""The course of bench.fleet: the same stream of requests to one server after another.

Owns: the client, the turns, and that a wrong or missing answer fails its row. Must not:
know a contender, or judge figures (bench/fleet_results.py).
"""

import argparse
import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
from rich.progress import Progress

from bench.busy import Others, load
from bench.client import DEADLINE_S
from bench.fleet_models import Fleet
from bench.fleet_results import Results, Round
from bench.peers.contender import Contender, Unavailable
from bench.peers.running import Running, begin
from bench.right import is_right
from bench.traffic import METHOD, request, zipf
from protos import open_inference_pb2 as pb
from runtime.wire import TEMPERATURE

CALLERS = 8
ALPHA = 0.9

Ask = Callable[[str], "grpc.aio.UnaryUnaryCall[bytes, bytes]"]


@dataclass(slots=True)
class Seen:
    """One answer: whose, what, after how many seconds."""

    model: str
    answer: bytes
    seconds: float


class Course:
    """All rounds, all contenders."""

    def __init__(
        self, options: argparse.Namespace, results: Results, progress: Progress
    ) -> None:
        self._options = options
        self._progress = progress
        self.results = results

    def run(
        self,
        fleet: Fleet,
        contenders: Sequence[Contender],
        models: Callable[[Contender], Path],
    ) -> None:
        """Start all, measure in turns, stop all."""
        with ExitStack() as stack:
            bar = self._progress.add_task("starting", total=len(contenders))
            started = begin(contenders, fleet.folder / "run", models, "", stack)
            up = []
            for server in started:
                if self._came_up(server, fleet):
                    up.append(server)
                self._progress.advance(bar)
            self._rounds(up, fleet)

    def _came_up(self, server: Running, fleet: Fleet) -> bool:
        name, right = next(iter(fleet.right.items()))
        try:
            server.wait_right(
                request(name).SerializeToString(),
                name,
                lambda answer: is_right(answer, right),
            )
        except Unavailable as error:
            self.results.skipped[server.name] = str(error)
            server.stop()
            return False
        return True

    def _rounds(self, up: list[Running], fleet: Fleet) -> None:
        length: int = self._options.requests
        rounds: int = self._options.rounds
        bar = self._progress.add_task("from cold", total=(rounds + 1) * len(up))
        messages = {name: request(name).SerializeToString() for name in fleet.right}
        ranked = list(fleet.right)
        for number in range(rounds + 1):
            if number:
                self._progress.update(bar, description=f"round {number}")
            stream = stream_of(ranked, length, self._options.seed, number)
            for server in up if number % 2 == 0 else up[::-1]:
                if server.name not in self.results.failed:
                    self._once(server, fleet, stream, messages, number)
                self._progress.advance(bar)
            self.results.loads.append(load())

    def _once(
        self,
        server: Running,
        fleet: Fleet,
        stream: Sequence[str],
        messages: Mapping[str, bytes],
        number: int,
    ) -> None:
        others, spent = Others(), server.tree.cpu_seconds()
        own = time.process_time()
        began = time.perf_counter()
        try:
            seen = asyncio.run(asked(server, stream, messages))
            seconds = time.perf_counter() - began
            check(seen, fleet)
        except (Wrong, grpc.RpcError) as error:
            self.results.failed[server.name] = said_of(error)
            return
        cpu = server.tree.cpu_seconds() - spent
        own = time.process_time() - own
        found = Round(
            rate=len(seen) / seconds,
            latencies=latencies(seen),
            cpu=cpu / len(seen),
            others=others.share(cpu + own),
            memory=server.tree.pss(),
        )
        self.results.add(server.name, number, found)


class Wrong(Exception):
    """An answer that was not the right one."""


def said_of(error: Exception) -> str:
    """One line of it."""
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name}: {error.details()}"
    return str(error)


def stream_of(names: list[str], length: int, seed: int, number: int) -> list[str]:
    """The requests of a round: the popularities stay, the draws are new."""
    return zipf(names, ALPHA, length * (number + 1), seed)[length * number :]


async def asked(
    server: Running, stream: Sequence[str], messages: Mapping[str, bytes]
) -> list[Seen]:
    """Eight callers, until the stream is used up. Raises grpc.RpcError."""
    seen: list[Seen] = []
    names = iter(stream)
    clock = time.perf_counter

    async def caller(ask: Ask, names: Iterator[str]) -> None:
        for name in names:
            began = clock()
            answer = await ask(name)
            seen.append(Seen(name, answer, clock() - began))

    async with dialled(server, messages) as ask:
        # gather: the first error is the one to tell.
        await asyncio.gather(*(caller(ask, names) for _ in range(CALLERS)))
    return seen


@asynccontextmanager
async def dialled(server: Running, messages: Mapping[str, bytes]):  # type: ignore[no-untyped-def]
    """A function that asks this server for a model."""
    options = (("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1))
    headers = {name: tuple(server.contender.metadata(name)) for name in messages}
    async with grpc.aio.insecure_channel(server.address, options=options) as channel:
        method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]
        method = channel.unary_unary(METHOD)
        yield lambda name: method(
            messages[name], timeout=DEADLINE_S, metadata=headers[name]
        )


def check(seen: Sequence[Seen], fleet: Fleet) -> None:
    """Every single answer against its model's reference."""
    for each in seen:
        if not is_right(each.answer, fleet.right[each.model]):
            raise Wrong(f"{each.model} was answered wrongly")


def latencies(seen: Sequence[Seen]) -> dict[str, list[float]]:
    """By how the request met its model: hit, wait, miss. Ascending."""
    found: dict[str, list[float]] = {"hit": [], "wait": [], "miss": []}
    for each in seen:
        parameters = pb.ModelInferResponse.FromString(each.answer).parameters
        found[parameters[TEMPERATURE].string_param].append(each.seconds)
    for values in found.values():
        values.sort()
    return found
