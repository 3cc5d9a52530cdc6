"""One HTTP/2 connection: bytes in, calls out, bytes back once a turn of the loop.

Owns: its streams, when it is read and written, and when its caller is told to make
another. Must not: know how a call is answered (runtime/http2/calls.py), or who listens.

zttp counts the streams and the resets of a connection and ends it, with all calls on
it, at 4,096 and at 256 (its defence against floods of resets). So that no caller meets
that, a connection is retired before: a GOAWAY says that the next call wants another
one, which every gRPC client makes by itself, and what is under way is answered.
"""

import asyncio
import socket
from collections.abc import Callable
from typing import Protocol, cast

import zttp

from runtime.http2.stream import Stream
from runtime.limits import KEEPALIVE_S, KEEPALIVE_TIMEOUT_S

STREAMS, RESETS = 3_700, 100
"""Of a connection, until it is retired. Callers may have 128 calls under way, and each
may begin or end in the moment in which it is told."""

ANY_STREAM = (1 << 31) - 1
"""In a GOAWAY: whatever was sent before it came is answered."""

Begin = Callable[[Stream, tuple[str, int] | None], None]
"""Answers a stream; with who asks."""


class Owner(Protocol):
    """Who has to know of a connection (runtime/http2/connections.py)."""

    def took(self, connection: "Connection") -> None:
        """It is there."""
        ...

    def lost(self, connection: "Connection") -> None:
        """It is gone."""
        ...

    def refuses(self) -> bool:
        """True while no more calls are taken than there are."""
        ...


class Connection(asyncio.Protocol):
    """`begin`: answer a stream, in a task of its own. `most`: bytes of a request that
    may wait for whoever answers it. `born`, `heard`, `ended`: when it was made, when
    something came, when it was closed, on the event loop's clock."""

    def __init__(
        self,
        begin: Begin,
        owner: Owner,
        most: int,
    ) -> None:
        self._begin = begin
        self._owner = owner
        self.most = most
        self.loop = asyncio.get_running_loop()
        self.frames = zttp.Connection(zttp.SERVER, protocol=zttp.HTTP2)
        self.streams: dict[int, Stream] = {}
        self.born = self.heard = self.ended = self._moved = self.loop.time()
        self.full = False
        """The kernel takes no more for now."""
        self._count = self._resets = 0
        self.retired = self.over = False
        self._flushing = False
        self._transport: asyncio.Transport
        self._peer: tuple[str, int] | None = None

    # -- asyncio.Protocol -------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        self._transport = cast(asyncio.Transport, transport)
        peer = transport.get_extra_info("peername")
        self._peer = (peer[0], peer[1]) if isinstance(peer, tuple) else None
        _keep_alive(transport.get_extra_info("socket"))
        self._owner.took(self)
        self.frames.initiate_connection()
        self._flush()

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        self.heard = self.loop.time()
        frames, begun = self.frames, list[Stream]()
        try:
            frames.receive_data(data)
            event = frames.next_event()
            while event is not zttp.NEED_DATA:
                self._happened(event, begun)
                event = frames.next_event()
        except zttp.RemoteProtocolError:
            self.close()
            return
        # Now, for most requests are whole by now.
        for stream in begun:
            if not stream.gone:  # called off in the same breath
                self._begin(stream, self._peer)
        self._flush()  # what zttp answers by itself

    def pause_writing(self) -> None:
        """See asyncio.Protocol. Who does not read is not read from either: each ping
        and each request would leave something more to be written."""
        self.full = True
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        """See asyncio.Protocol."""
        self.full = False
        if not self._transport.is_closing():
            self._transport.resume_reading()
        self._may_go_on()

    def connection_lost(self, error: Exception | None) -> None:
        """See asyncio.Protocol."""
        self.over = True
        streams, self.streams = self.streams, {}
        for stream in streams.values():
            stream.left()
        self._owner.lost(self)

    # -- for its streams --------------------------------------------------------------

    def flush_soon(self) -> None:
        """Write what there is, once all that this turn of the loop brings is there: at
        once if nobody else waits for an answer."""
        if not self.streams:
            self._flush()
        elif not self._flushing:
            self._flushing = True
            self.loop.call_soon(self._turned)

    def forget(self, number: int) -> None:
        """A stream is over."""
        self.streams.pop(number, None)

    def dropped(self, number: int) -> None:
        """A stream was reset, by us or by the caller: zttp counts those."""
        self.streams.pop(number, None)
        self._resets += 1
        if self._resets >= RESETS:
            self.retire()
        self.flush_soon()

    # -- for who listens --------------------------------------------------------------

    def retire(self) -> None:
        """The caller is to make its next call over another connection."""
        if not (self.retired or self.over):
            self.retired = True
            self.frames.close(zttp.H2ErrorCode.NO_ERROR, ANY_STREAM)
            self._flush()

    def close(self) -> None:
        """End it; what was written before goes out."""
        if not self.over:
            self.frames.close()  # calls that were never seen here may be made again
            self._flush()
            self.over, self.ended = True, self.loop.time()
            self._transport.close()

    def abort(self) -> None:
        """End it at once."""
        self.over = True
        self._transport.abort()

    @property
    def unsent(self) -> bool:
        """Bytes wait to be taken by the caller."""
        waiting = self.frames.has_pending_send()
        return waiting or self._transport.get_write_buffer_size() > 0

    @property
    def sending(self) -> bool:
        """The same, or a part of an answer waits to be given to zttp."""
        return self.unsent or any(stream.waits for stream in self.streams.values())

    def stalled(self, now: float) -> float:
        """Seconds for which they have waited and the caller has made no room for more.
        To be asked now and then; `now`: on the event loop's clock."""
        if not self.sending:
            self._moved = now
        return now - self._moved

    # -- events -----------------------------------------------------------------------

    def _happened(self, event: zttp.Event, begun: list[Stream]) -> None:
        if isinstance(event, zttp.Data):
            if event.stream_id in self.streams:
                self.streams[event.stream_id].came(event.data)
        elif isinstance(event, zttp.EndOfMessage):
            if event.stream_id in self.streams:
                self.streams[event.stream_id].ended()
        elif isinstance(event, zttp.Request):
            self._asked(event, begun)
        elif isinstance(event, zttp.RstStream):
            self._called_off(event.stream_id)
        elif isinstance(event, zttp.WindowUpdate):
            self._may_go_on()

    def _asked(self, request: zttp.Request, begun: list[Stream]) -> None:
        number = request.stream_id
        self._count += 1
        if self._count >= STREAMS:
            self.retire()
        if self._owner.refuses():
            self.frames.stream(number).reset(zttp.H2ErrorCode.REFUSED_STREAM)
            self.dropped(number)
            return
        stream = self.streams[number] = Stream(self, request)
        begun.append(stream)

    def _called_off(self, number: int) -> None:
        stream = self.streams.get(number)
        self.dropped(number)
        if stream is not None:
            stream.left()

    def _may_go_on(self) -> None:
        self._moved = self.loop.time()
        for stream in list(self.streams.values()):
            stream.may_go_on()

    def _turned(self) -> None:
        self._flushing = False
        self._flush()

    def _flush(self) -> None:
        if self.over:
            return
        data = self.frames.data_to_send()
        if data:
            self._transport.write(data)


def _keep_alive(sock: socket.socket) -> None:
    """The kernel finds out about a caller who has vanished."""
    if sock.family == socket.AF_UNIX:
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for name, value in (
        ("TCP_KEEPIDLE", KEEPALIVE_S),
        ("TCP_KEEPINTVL", KEEPALIVE_TIMEOUT_S),
        ("TCP_KEEPCNT", 1),
    ):
        if hasattr(socket, name):  # macOS has other names
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
