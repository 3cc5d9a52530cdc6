"""One HTTP/2 connection: bytes in, calls out, bytes back once a turn of the loop.

Owns: its streams, when it is read and written, and when its caller is told to make
another. Must not: know gRPC (runtime/asgi/), or who listens.

zttp counts the streams and the resets of a connection and ends it, with all calls on
it, at 4,096 and at 256 (its defence against floods of resets). So that no caller meets
that, a connection is retired before: a GOAWAY says that the next call wants another
one, which every gRPC client makes by itself, and what is under way is answered.
"""

import asyncio
import socket
from collections.abc import Mapping
from typing import Protocol, cast
from urllib.parse import unquote

import zttp

from runtime.asgi.application import is_grpc
from runtime.asgi.types import Asgi, Message
from runtime.http2.direct import Direct
from runtime.http2.stream import Stream
from runtime.limits import KEEPALIVE_S, KEEPALIVE_TIMEOUT_S

STREAMS, RESETS = 3_700, 100
"""Of a connection, until it is retired. Callers may have 128 calls under way, and each
may begin or end in the moment in which it is told."""

ANY_STREAM = (1 << 31) - 1
"""In a GOAWAY: whatever was sent before it came is answered."""

_ASGI = {"version": "3.0", "spec_version": "2.3"}
_EXTENSIONS: dict[str, object] = {"http.response.trailers": {}}


class Callers(Protocol):
    """Who has to know of a connection (runtime/http2/callers.py)."""

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
    """`direct` answers calls with one message, by their path, `app` the others. `most`:
    bytes of a request that may wait for whoever answers it. `heard`: when something
    came."""

    def __init__(
        self,
        direct: Mapping[bytes, Direct],
        app: Asgi,
        callers: Callers,
        most: int,
    ) -> None:
        self._direct = direct
        self._app = app
        self._callers = callers
        self.most = most
        self.loop = asyncio.get_running_loop()
        self.engine = zttp.Connection(zttp.SERVER, protocol=zttp.HTTP2)
        self.streams: dict[int, Stream] = {}
        self.born = self.heard = self._moved = self.loop.time()
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
        self._callers.took(self)
        self.engine.initiate_connection()
        self._flush()

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        self.heard = self.loop.time()
        engine, begun = self.engine, list[Stream]()
        try:
            engine.receive_data(data)
            event = engine.next_event()
            while event is not zttp.NEED_DATA:
                self._happened(event, begun)
                event = engine.next_event()
        except zttp.RemoteProtocolError:
            self.close()
            return
        # Now, for most requests are whole by now.
        for stream in begun:
            self._begin(stream)
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
        self._callers.lost(self)

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
            self.engine.close(zttp.H2ErrorCode.NO_ERROR, ANY_STREAM)
            self._flush()

    def close(self) -> None:
        """End it; what was written before goes out."""
        if not self.over:
            self.engine.close()  # calls that were never seen here may be made again
            self._flush()
            self.over = True
            self._transport.close()

    def abort(self) -> None:
        """End it at once."""
        self.over = True
        self._transport.abort()

    @property
    def stuck(self) -> bool:
        """Answers wait for a caller who does not take them."""
        waiting = self.engine.has_pending_send()
        return waiting or self._transport.get_write_buffer_size() > 0

    @property
    def sending(self) -> bool:
        """So does the rest of one that was not given to zttp so far."""
        return self.stuck or any(stream.waits for stream in self.streams.values())

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
        elif isinstance(event, zttp.WindowUpdate | zttp.Settings):
            self._may_go_on()

    def _asked(self, request: zttp.Request, begun: list[Stream]) -> None:
        number = request.stream_id
        self._count += 1
        if self._count >= STREAMS:
            self.retire()
        if self._callers.refuses():
            self.engine.stream(number).reset(zttp.H2ErrorCode.REFUSED_STREAM)
            self.dropped(number)
            return
        stream = self.streams[number] = Stream(self, request)
        begun.append(stream)

    def _begin(self, stream: Stream) -> None:
        if stream.gone:  # called off in the same breath
            return
        request = stream.request
        direct = self._direct.get(request.path)
        if direct and request.method == b"POST" and is_grpc(request.headers):
            stream.task = self.loop.create_task(direct.over(stream))
            return
        answering = self._app(self._scope(request), stream.receive, stream.send)
        task = stream.task = asyncio.ensure_future(answering)
        task.add_done_callback(lambda task: _ended(stream, task))

    def _scope(self, request: zttp.Request) -> Message:
        path = request.path.decode("latin-1")
        return {
            "type": "http",
            "asgi": _ASGI,
            "http_version": "2",
            "scheme": "http",
            "method": request.method.decode("latin-1"),
            "path": unquote(path) if "%" in path else path,
            "raw_path": request.path,
            "query_string": request.query,
            "root_path": "",
            "headers": request.headers,
            "client": self._peer,
            "server": None,
            "extensions": _EXTENSIONS,
        }

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
        data = self.engine.data_to_send()
        if data:
            self._transport.write(data)


def _ended(stream: Stream, task: "asyncio.Future[None]") -> None:
    if not task.cancelled():
        task.exception()  # the applications let nothing pass
    stream.abandon()


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
