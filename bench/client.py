"""A closed loop of callers over one channel: what a client sees, and nothing else.

Owns: calling and timing. Must not: parse or build messages while it measures: requests
are bytes made before, answers are bytes looked at after, so that the client's own work
stays small beside the server's.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc

from bench.traffic import METHOD

Call = Callable[[bytes], Awaitable[bytes]]

DEADLINE_S = 30.0
"""A call that takes longer fails the bench."""


@dataclass(frozen=True, slots=True)
class Round:
    """What one measurement saw. `latencies` in seconds, in the order of their ends."""

    latencies: list[float]
    seconds: float
    last: bytes

    @property
    def rate(self) -> float:
        """Answers a second."""
        return len(self.latencies) / self.seconds


@asynccontextmanager
async def dialled(address: str) -> AsyncIterator[Call]:
    """A function that asks this server: bytes in, bytes out."""
    # Two channels of one process to one address share a connection otherwise, and a
    # proxy of the environment has no business here.
    options = (("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1))
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        await asyncio.wait_for(channel.channel_ready(), DEADLINE_S)
        method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]
        method = channel.unary_unary(METHOD)

        async def call(request: bytes) -> bytes:
            answer: bytes = await method(request, timeout=DEADLINE_S)
            return answer

        yield call


async def closed_loop(
    call: Call,
    requests: Iterator[bytes],
    concurrency: int,
    seconds: float = float("inf"),
) -> Round:
    """`concurrency` callers, each with one call under way, until the requests or the
    time are used up."""
    clock = time.perf_counter
    latencies: list[float] = []
    last = b""

    async def caller() -> None:
        nonlocal last
        for request in requests:
            began = clock()
            last = await call(request)
            ended = clock()
            latencies.append(ended - began)
            if ended > until:
                return

    began = clock()
    until = began + seconds
    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(caller())
    return Round(latencies, clock() - began, last)


def quantile(values: list[float], share: float) -> float:
    """The value that `share` of all are not above (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
