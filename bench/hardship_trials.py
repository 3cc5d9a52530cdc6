"""What is done to a server by `bench.hardship`: one function a hardship.

Owns: each trial, from the first byte to what it found, as a dict of numbers. Must not:
judge them. A trial asks a running server; `drain` and `kill` end it.
"""

import asyncio
import contextlib
import socket
import struct
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import grpc

from bench.client import quantile
from bench.h2load import Client
from bench.process import Server
from bench.traffic import METHOD, request
from protos import open_inference_pb2 as pb

Found = dict[str, float]

BURST, CHANNELS = 10_000, 4
LARGE_ELEMENTS = 15 << 20
FLOODERS, RESETS = 4, 400
SILENT, HALF = 500, 200
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
EVERY_SIZE = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
]

SMALL = request("mlp").SerializeToString()


def resident_mib(server: Server) -> float:
    """Memory of the process, as the system counts it."""
    status = Path(f"/proc/{server.pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


@contextlib.asynccontextmanager
async def calling(server: Server) -> AsyncIterator[Callable[..., Awaitable[bytes]]]:
    """`ModelInfer` in bytes, over a connection of its own."""
    async with grpc.aio.insecure_channel(server.grpc, options=EVERY_SIZE) as channel:
        yield channel.unary_unary(METHOD)


async def bystander(server: Server, hardship: Awaitable[None]) -> Found:
    """What one other caller sees meanwhile: its calls, their p50 and p99, failures."""
    done = asyncio.ensure_future(hardship)
    took: list[float] = []
    failed = 0
    async with calling(server) as call:
        while not done.done() or len(took) < 100:
            began = time.perf_counter()
            try:
                await call(SMALL, timeout=30)
                took.append(time.perf_counter() - began)
            except grpc.aio.AioRpcError:
                failed += 1
            await asyncio.sleep(0.002)
    await done
    return {
        "bystander_p50_ms": quantile(took, 0.5) * 1e3,
        "bystander_p99_ms": quantile(took, 0.99) * 1e3,
        "bystander_failed": failed,
    }


async def burst(server: Server, count: int = BURST) -> Found:
    """Ten thousand calls at once, for a model that is not there yet."""
    message = request("cold").SerializeToString()
    began = time.perf_counter()
    async with contextlib.AsyncExitStack() as stack:
        calls = [
            await stack.enter_async_context(calling(server)) for _ in range(CHANNELS)
        ]
        answers = await asyncio.gather(
            *(calls[n % CHANNELS](message, timeout=120) for n in range(count)),
            return_exceptions=True,
        )
    lost = sum(isinstance(answer, BaseException) for answer in answers)
    return {"lost": lost, "seconds": time.perf_counter() - began}


async def large(server: Server, times: int = 5) -> Found:
    """Messages of 60 MiB there and back."""
    message = _wide().SerializeToString()
    took: list[float] = []

    async def send() -> None:
        async with calling(server) as call:
            for _ in range(times):
                began = time.perf_counter()
                answer = await call(message, timeout=60)
                took.append(time.perf_counter() - began)
                assert len(answer) > 4 * LARGE_ELEMENTS

    seen = await bystander(server, send())
    return {"message_s": quantile(took, 0.5), **seen}


async def resets(server: Server, rounds: int = 20) -> Found:
    """Streams opened and reset at once, on connections made anew when they are cut."""

    async def flood() -> None:
        block = head_block()
        sent = PREFACE + frame(4, 0, 0, b"")
        for number in range(RESETS):
            stream = 2 * number + 1
            sent += frame(1, 4, stream, block) + frame(3, 0, stream, b"\0\0\0\x08")
        for _ in range(rounds):
            with contextlib.suppress(ConnectionError):
                _, writer = await _connected(server)
                writer.write(sent)
                await writer.drain()
                writer.close()

    async def floods() -> None:
        await asyncio.gather(*(flood() for _ in range(FLOODERS)))

    return await bystander(server, floods())


async def slow(server: Server, seconds: float = 3.0) -> Found:
    """Connections that say nothing, or half of a message, and stay."""
    half = PREFACE + frame(4, 0, 0, b"")

    async def stand() -> None:
        writers = []
        for number in range(SILENT + HALF):
            _, writer = await _connected(server)
            if number >= SILENT:
                writer.write(half)
            writers.append(writer)
        await asyncio.sleep(seconds)
        for writer in writers:
            writer.close()

    return await bystander(server, stand())


async def growth(server: Server, folder: Path, requests: int) -> Found:
    """Memory over many requests, after a third of them and after all."""
    client = Client(folder, SMALL)
    memory: list[float] = []
    rates: list[float] = []
    for _ in range(3):
        told = await asyncio.to_thread(client.run, server.grpc, requests // 3, 32)
        rates.append(told.rate)
        memory.append(resident_mib(server))
    grown = (memory[2] - memory[0]) * 1024 / (2 * requests / 3)
    return {"rps": quantile(rates, 0.5), "grown_kib_a_request": grown}


async def drain(server: Server) -> Found:
    """SIGTERM under load: what the callers see, and how long it takes."""
    codes: Counter[str] = Counter()
    answered = asyncio.Event()

    async def caller() -> None:
        async with calling(server) as call:
            while True:
                try:
                    await call(SMALL, timeout=30)
                except grpc.aio.AioRpcError as error:
                    codes[error.code().name] += 1
                    return
                answered.set()

    callers = [asyncio.ensure_future(caller()) for _ in range(16)]
    await answered.wait()
    began = time.perf_counter()
    code = await asyncio.to_thread(server.stop)
    took = time.perf_counter() - began
    await asyncio.gather(*callers)
    return {
        "exit_code": code,
        "seconds": took,
        "callers_not_told_unavailable": 16 - codes["UNAVAILABLE"],
    }


def _wide() -> pb.ModelInferRequest:
    wide = pb.ModelInferRequest(model_name="same")
    wide.inputs.add(name="x", datatype="FP32", shape=[1, LARGE_ELEMENTS])
    wide.raw_input_contents.append(bytes(4 * LARGE_ELEMENTS))
    return wide


def head_block() -> bytes:
    """The headers of a `ModelInfer`, as HPACK without a table."""
    path = METHOD.encode()
    block = b"\x83\x86\x04" + bytes([len(path)]) + path + b"\x01\x01h"
    return block + b"\x0f\x10\x10application/grpc\x00\x02te\x08trailers"


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """One of HTTP/2."""
    head = struct.pack(">I", len(payload))[1:]
    return head + struct.pack(">BBI", kind, flags, stream) + payload


async def _connected(
    server: Server,
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = server.grpc.rpartition(":")
    return await asyncio.open_connection(host, int(port), family=socket.AF_INET)
