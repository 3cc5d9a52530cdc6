"""One HTTP/2 stream, as an ASGI application sees it: `receive` and `send`.

Owns: the body that has come and was not read, the answer's frames, and that zttp has no
more than PART of an answer at a time. Must not: know gRPC, or the socket.

What does not fit the caller's window zttp keeps, and moves all of it whenever some
leaves: 60 MiB given at once took 19 s to go. So it gets a part at a time.
"""

import asyncio
import contextlib
from typing import TYPE_CHECKING

import zttp

from runtime.asgi.metadata import Headers
from runtime.asgi.types import Message

if TYPE_CHECKING:
    from runtime.http2.connection import Connection

PART = 256 << 10
"""Bytes of an answer that zttp has at a time."""

_OK = 200
_LEFT: Message = {"type": "http.disconnect"}


class CallerLeft(OSError):
    """ASGI's way to say that nobody is there to be answered."""


class Stream:
    """`task`: answers it. `whole`: all of the request has come; `answered`: all of the
    answer is zttp's. `gone`: its caller is, or wants it no more. `waits`: its answer
    does, for the caller to take some."""

    __slots__ = (
        "_bodyless", "_chunks", "_connection", "_given", "_headed", "_number", "_out",
        "_room", "_start", "_trailers", "_unread", "_waiting", "answered", "gone",
        "request", "task", "whole",
    )  # fmt: skip

    def __init__(self, connection: "Connection", request: zttp.Request) -> None:
        self._connection = connection
        self.request = request
        self._number = request.stream_id
        self._out = connection.frames.stream(request.stream_id)
        self.task: asyncio.Future[None] | None = None
        self.whole: bool = request.end_stream
        self.answered = self.gone = False
        self._chunks: list[bytes] = []
        self._unread = 0
        self._given = False
        """That the request is whole, too."""
        self._bodyless = request.method == b"HEAD"
        self._start: Message | None = None
        self._headed = False
        """The answer's head has gone."""
        self._trailers = False
        self._waiting: asyncio.Future[Message] | None = None
        self._room: asyncio.Future[None] | None = None

    @property
    def waits(self) -> bool:
        """See Stream."""
        return self._room is not None

    # -- what comes -------------------------------------------------------------------

    def came(self, data: bytes) -> None:
        """A part of the body. Once it is answered nobody wants more of a request (RFC
        9113, 8.1); and of one that nobody reads there is an end: zttp lets its caller
        send on without any."""
        if self.answered:
            if not self._out.pending_bytes:
                self._reset(zttp.H2ErrorCode.NO_ERROR)
            return
        self._chunks.append(data)
        self._unread += len(data)
        if self._unread > self._connection.most:
            self._reset(zttp.H2ErrorCode.ENHANCE_YOUR_CALM)
            self.left()
            return
        self._wake()

    def ended(self) -> None:
        """The request is whole."""
        self.whole = True
        if self.answered:
            self._connection.forget(self._number)
        else:
            self._wake()

    def left(self) -> None:
        """The caller has gone, or has called it off: nobody needs the answer."""
        self.gone = True
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
        """The whole body if it has come in one piece. To be called before `receive`."""
        if not self.whole or len(self._chunks) != 1:
            return None
        self._given, self._unread = True, 0
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
        if self._chunks or self.whole or self.gone:
            self._wake()
        return future

    def _wake(self) -> None:
        future = self._waiting
        if future is None or future.done():
            return
        if self.gone:
            future.set_result(_LEFT)
        elif self._chunks or (self.whole and not self._given):
            chunks = self._chunks
            body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
            self._chunks, self._given, self._unread = [], self.whole, 0
            more = not self.whole
            future.set_result({"type": "http.request", "body": body, "more_body": more})

    # -- what goes --------------------------------------------------------------------

    async def send(self, message: Message) -> None:
        """ASGI: a part of the answer; returns when there is room for the next. Raises
        CallerLeft."""
        if self.gone:
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

    def answer(self, head: Headers, body: bytes, trailers: Headers) -> None:
        """All of a small answer. Raises CallerLeft."""
        if self.gone:
            raise CallerLeft
        try:
            out = self._out
            out.send_response(_OK, head)
            self._headed = True
            out.send_data(body)
            self._end(trailers)
        except zttp.LocalProtocolError:
            raise CallerLeft from None
        self._connection.flush_soon()

    def abandon(self) -> None:
        """Nobody answers it any more. What has no end so far ends with a reset."""
        if not (self.answered or self.gone):
            self.gone = True
            self._reset(zttp.H2ErrorCode.INTERNAL_ERROR)

    async def _body(self, message: Message) -> None:
        """A part, or the whole, or that there is none: then the head is the end too
        (gRPC's "Trailers-Only")."""
        start, body = self._start, message["body"]
        body = b"" if self._bodyless else body
        if start is not None:
            self._start = None
            self._trailers = start.get("trailers", False)
            if self._headed:  # a status instead of the rest of an answer: too late
                self.abandon()
                return
            self._headed = True
            alone = not (body or message.get("more_body") or self._trailers)
            self._out.send_response(start["status"], start["headers"], alone)
            if alone:
                self._over()
                return
        if body:
            await self._give(body)
        if not (message.get("more_body") or self._trailers):
            self._end(None)

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
                if self.gone:
                    raise CallerLeft
            out.send_data(view[at : at + PART])

    def _end(self, trailers: Headers | None) -> None:
        self._out.end_message(trailers)
        self._over()

    def _over(self) -> None:
        self.answered = True
        self._chunks.clear()
        if self.whole:
            self._connection.forget(self._number)

    def _reset(self, code: zttp.H2ErrorCode) -> None:
        """From our side; the caller is told."""
        with contextlib.suppress(zttp.LocalProtocolError):
            self._out.reset(code)
        self._connection.dropped(self._number)
