"""Callers who go away in the middle: half a message over gRPC or HTTP, a lost channel.

Owns: the ways to leave, and how a caller of bench.soak connects. Must not: wait for an
answer.
"""

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator

import grpc

from bench.client import DEADLINE_S
from bench.hardship_trials import PREFACE, frame, head_block
from bench.process import Server
from bench.traffic import METHOD

OPTIONS = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
)
END_HEADERS = 4
ON_ITS_WAY_S = 0.002
"""A request has left by then; a load has not ended."""
PAUSE_S = 0.05
"""After half a message, so that the server has begun to wait for the rest."""


def channel(server: Server) -> grpc.aio.Channel:
    """A connection of its own, for messages of every size."""
    return grpc.aio.insecure_channel(server.grpc, options=OPTIONS)


async def half_a_message(server: Server, name: str, message: bytes) -> None:
    """gRPC: the head, half of the body, and the connection is closed."""
    body = struct.pack(">BI", 0, len(message)) + message[: len(message) // 2]
    async with _connected(server.grpc) as writer:
        writer.write(PREFACE + frame(4, 0, 0, b""))
        writer.write(frame(1, END_HEADERS, 1, head_block()) + frame(0, 0, 1, body))
        await _sent(writer)


async def half_a_body(server: Server, name: str, message: bytes) -> None:
    """HTTP/1.1: as many bytes announced, half of them sent."""
    head = (
        f"POST /v2/models/{name}/infer HTTP/1.1\r\nhost: h\r\n"
        f"content-length: {len(message)}\r\n\r\n"
    )
    async with _connected(server.http) as writer:
        writer.write(head.encode() + message[: len(message) // 2])
        await _sent(writer)


async def lost_channel(server: Server, name: str, message: bytes) -> None:
    """gRPC: a whole request, and the channel is closed before the answer."""
    async with channel(server) as own:
        await asyncio.wait_for(own.channel_ready(), DEADLINE_S)
        method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]
        method = own.unary_unary(METHOD)
        method(message, timeout=DEADLINE_S)
        await asyncio.sleep(ON_ITS_WAY_S)


WAYS = (half_a_message, half_a_body, lost_channel)


async def _sent(writer: asyncio.StreamWriter) -> None:
    await writer.drain()
    await asyncio.sleep(PAUSE_S)


@contextlib.asynccontextmanager
async def _connected(address: str) -> AsyncIterator[asyncio.StreamWriter]:
    host, _, port = address.rpartition(":")
    _, writer = await asyncio.open_connection(host, int(port))
    try:
        yield writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
