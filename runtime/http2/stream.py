"""One HTTP/2 stream, as an ASGI application sees it: `receive` and `send`.

Owns: the body that has come and was not read, the answer's frames, and that no more of
an answer is given to zttp than its caller takes. Must not: know gRPC, or the socket.

What does not fit the caller's window zttp keeps, and moves all of it whenever some
leaves: 60 MiB given at once took 19 s to go. So it gets a part at a time.
"""

import asyncio
from typing import TYPE_CHECKING

import zttp

from runtime.asgi.metadata import Headers
from runtime.asgi.types import Message

if TYPE_CHECKING:
    from runtime.http2.connection import Connection

PART = 256 << 10
"""Bytes of an answer that zttp has at a time."""

OK = 200

UNREAD = 1 << 20
"""Bytes of a request that wait for whoever answers it, until no more are read."""

_LEFT: Message = {"type": "http.disconnect"}


class CallerLeft(OSError):
    """ASGI's way to say that nobody is there to be answered."""


class Stream:
    """`task`: answers it. `whole`: all of the request has come."""

    __slots__ = (
        "_answered", "_bodyless", "_chunks", "_connection", "_given", "_left",
        "_number", "_out", "_room", "_start", "_trailers", "_waiting", "request",
        "task", "unread", "whole",
    )  # fmt: skip

    def __init__(self, connection: "Connection", request: zttp.Request) -> None:
        self._connection = connection
        self.request = request
        self._number = request.stream_id
        self._out = connection.engine.stream(request.stream_id)
        self.task: asyncio.Future[None] | None = None
        self.whole: bool = request.end_stream
        self.unread = 0
        self._chunks: list[bytes] = []
        self._given = False
        """That the request is whole, too."""
        self._left = False
        self._answered = False
        self._bodyless = request.method == b"HEAD"
        self._start: Message | None = None
        self._trailers = False
        self._waiting: asyncio.Future[Message] | None = None
        self._room: asyncio.Future[None] | None = None

    # -- what comes -------------------------------------------------------------------

    def came(self, data: bytes) -> None:
        """A part of the body."""
        if self._answered:
            return
        self._chunks.append(data)
        self.unread += len(data)
        self._wake()

    def ended(self) -> None:
        """The request is whole."""
        self.whole = True
        self._wake()

    def left(self) -> None:
        """The caller has gone, or has called it off: nobody needs the answer."""
        self._left = True
        self._wake()
        self.may_go_on()
        if self.task is not None:
            self.task.cancel()

    def may_go_on(self) -> None:
        """The caller takes more, or never will."""
        room, self._room = self._room, None
        if room is not None and not room.done():
            room.set_result(None)

    def take(self) -> bytes | None:
        """The whole body if it has come in one piece, and nobody has read of it."""
        if not self.whole or len(self._chunks) != 1:
            return None
        self._given, self.unread = True, 0
        return self._chunks.pop()

    def give_back(self, body: bytes | None) -> None:
        """It is to be received after all."""
        if body is not None:
            self._chunks.append(body)
            self._given = False

    def receive(self) -> "asyncio.Future[Message]":
        """ASGI: the next part of the request. Once it is whole, the caller's end."""
        future: asyncio.Future[Message] = self._connection.loop.create_future()
        self._waiting = future
        if self._chunks or self.whole or self._left:
            self._wake()
        return future

    def _wake(self) -> None:
        future = self._waiting
        if future is None or future.done():
            return
        if self._left:
            future.set_result(_LEFT)
        elif self._chunks or (self.whole and not self._given):
            chunks = self._chunks
            body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
            self._chunks, self._given = [], self.whole
            held_up, self.unread = self.unread > UNREAD, 0
            if held_up:
                self._connection.read_on()
            more = not self.whole
            future.set_result({"type": "http.request", "body": body, "more_body": more})

    # -- what goes --------------------------------------------------------------------

    async def send(self, message: Message) -> None:
        """ASGI: a part of the answer; returns when there is room for the next. Raises
        CallerLeft."""
        if self._left:
            raise CallerLeft
        kind = message["type"]
        try:
            if kind == "http.response.start":
                self._start = message
            elif kind == "http.response.body":
                await self._body(message)
            else:
                self._end(message["headers"])
        except zttp.LocalProtocolError:  # the stream, or the connection, is over
            raise CallerLeft from None
        self._connection.flush_soon()

    async def _body(self, message: Message) -> None:
        """A part, or the whole, or that there is none: then the head is the end too
        (gRPC's "Trailers-Only")."""
        start, body = self._start, message["body"]
        last = not (message.get("more_body") or self._trailers)
        if start is not None:
            self._start = None
            self._trailers = start.get("trailers", False)
            last = last and not self._trailers
            body = b"" if self._bodyless else body
            alone = last and not body
            self._out.send_response(start["status"], start["headers"], alone)
            if alone:
                self._over()
                return
        if body and not self._bodyless:
            await self._give(body)
        if last:
            self._end(None)

    def answer(self, head: Headers, body: bytes, trailers: Headers) -> None:
        """All of a small answer. Raises CallerLeft."""
        try:
            out = self._out
            out.send_response(OK, head)
            out.send_data(body)
            self._end(trailers)
        except zttp.LocalProtocolError:
            raise CallerLeft from None
        self._connection.flush_soon()

    async def _give(self, body: bytes) -> None:
        out = self._out
        if len(body) <= PART and not out.pending_bytes:
            out.send_data(body)
            return
        view = memoryview(body)
        for at in range(0, len(view), PART):
            while out.pending_bytes or self._connection.full:
                self._connection.flush_soon()
                self._room = self._connection.loop.create_future()
                await self._room
                if self._left:
                    raise CallerLeft
            out.send_data(view[at : at + PART])

    def _end(self, trailers: Headers | None) -> None:
        self._out.end_message(trailers)
        self._over()

    def _over(self) -> None:
        self._answered = True
        self._connection.answered(self._number, self)

    def abandon(self) -> None:
        """There will be no more of an answer that has begun, or none at all."""
        if self._answered or self._left:
            return
        self._answered = True
        try:
            self._out.reset(zttp.H2ErrorCode.INTERNAL_ERROR)
        except zttp.LocalProtocolError:
            return
        self._connection.flush_soon()
