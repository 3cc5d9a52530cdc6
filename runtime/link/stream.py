"""Batches of messages over a socket: all that is said in one turn of the loop is one
frame, one write and, on the other side, one wake-up.

    frame = length (4 bytes, little-endian) + MessagePack array of messages

Owns: framing and batching. Must not: know what a message means. Either side may vanish
at any moment; then `lost` is called once, on the event loop.
"""

import asyncio
import socket
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar, cast

import msgspec
import structlog

from runtime.link.messages import encoded

M = TypeVar("M")

HEAD = 4
LARGEST = 256 << 20
"""Bytes of a frame; a batch that takes more goes in several. Only a message that is
larger by itself makes a larger one."""

log = structlog.get_logger()


class Stream(asyncio.Protocol, Generic[M]):
    """One side of a socket pair."""

    def __init__(
        self,
        decoder: "msgspec.msgpack.Decoder[list[M]]",
        heard: Callable[[Sequence[M]], None],
        lost: Callable[[], None],
    ) -> None:
        self._decoder = decoder
        self._heard = heard
        self._lost = lost
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.WriteTransport | None = None
        self._waiting: list[object] = []
        self._rest = bytearray()
        self.closed = False
        """True once the other side, or this one, is gone."""

    async def open(self, end: socket.socket) -> None:
        """Speak over `end` from now on."""
        await self._loop.create_unix_connection(lambda: self, sock=end)

    def say(self, message: object) -> None:
        """Send, with whatever else is said in this turn of the loop."""
        if not self._waiting:
            self._loop.call_soon(self._flush)
        self._waiting.append(message)

    def _flush(self) -> None:
        batch, self._waiting = self._waiting, []
        if self._transport is None or self._transport.is_closing():
            return
        self._write(self._transport, batch)

    def _write(self, transport: asyncio.WriteTransport, batch: list[object]) -> None:
        body = encoded(batch)
        if len(body) > LARGEST and len(batch) > 1:
            half = len(batch) // 2
            self._write(transport, batch[:half])
            self._write(transport, batch[half:])
            return
        head = len(body).to_bytes(HEAD, "little")
        if len(body) < 1 << 16:
            transport.write(head + body)
        else:
            transport.writelines((head, body))

    def close(self) -> None:
        """Say what has been said, and go."""
        if self._transport is not None:
            if self._waiting:
                self._flush()
            self._transport.close()

    # -- asyncio's side ---------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: the socket is ours."""
        self._transport = cast(asyncio.WriteTransport, transport)

    def data_received(self, data: bytes) -> None:
        """asyncio: some bytes; frames begin and end anywhere in them."""
        if self._rest:
            self._rest += data
            used = self._frames(self._rest)
            del self._rest[:used]
        else:
            used = self._frames(data)
            if used < len(data):
                self._rest += data[used:]

    def _frames(self, data: bytes | bytearray) -> int:
        """Hear every whole frame; the bytes that they took."""
        at = 0
        while at + HEAD <= len(data):
            end = at + HEAD + int.from_bytes(data[at : at + HEAD], "little")
            if end > len(data):
                break
            # Bytes of its own: a Raw in a message is a view of what it was read from.
            self._hear(bytes(data[at + HEAD : end]))
            at = end
        return at

    def _hear(self, body: bytes) -> None:
        try:
            messages = self._decoder.decode(body)
        except msgspec.DecodeError as error:
            log.critical("the other side speaks another language", exc_info=error)
            self.close()
        else:
            self._heard(messages)

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio: the other side is gone, or we are."""
        self._transport = None
        self.closed = True
        self._lost()
