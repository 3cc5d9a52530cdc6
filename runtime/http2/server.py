"""The server of the front end `zttp`: a socket that listens, and the order of its end.

Owns: these, as runtime/server.py does for grpc.aio, whose steps it follows. Must not:
know what a method does, or create the engine.
"""

import asyncio
from collections.abc import Callable, Sequence

import structlog

from runtime.asgi.application import Application
from runtime.asgi.telling import OnEnd
from runtime.asgi.types import Asgi, Message, Receive, Send
from runtime.asgi.vigil import Vigil
from runtime.engine import Engine
from runtime.health import Health
from runtime.http2.calls import Calls
from runtime.http2.connection import Connection
from runtime.http2.connections import Connections
from runtime.http2.direct import Direct
from runtime.limits import LAST_WORDS_S, PENDING_HARD, QUIET_S, Options
from runtime.methods import Service
from runtime.ports import BACKLOG, CannotListen, listener
from runtime.services import services_of
from runtime.serving import Serving
from runtime.stopping import drained, quiet

_log = structlog.get_logger()

UNREAD = 1 << 20
"""Bytes of a request above the largest message that may wait for who answers it."""


class Answering:
    """What has to end."""

    def __init__(
        self,
        engine: Engine,
        health: Health,
        vigil: Vigil,
        connections: Connections,
        listening: asyncio.Server,
    ) -> None:
        self._engine = engine
        self._health = health
        self._vigil = vigil
        self._connections = connections
        self._listening = listening

    async def end(self, grace: float) -> None:
        """See runtime.serving.End."""
        self._health.close()
        # Who has a connection is told to make the next one elsewhere, and is refused
        # with UNAVAILABLE and a hint if it calls here all the same. (Not who connects
        # from now on: told so before its first call, it has failed to connect.)
        self._connections.retire()
        loop = asyncio.get_running_loop()
        ends = loop.time() + grace
        drain = asyncio.ensure_future(self._engine.drain())
        await asyncio.wait({drain}, timeout=grace)
        # The engine is done with a call before its caller has all of the answer.
        while self._connections.sending and loop.time() < ends:  # noqa: ASYNC110
            await asyncio.sleep(QUIET_S)
        if not drain.done():
            _log.warning("the grace is over, running calls are cut")
            self._vigil.cut()
        await quiet(lambda: self._vigil.calls)
        self._listening.close()
        # Idle streams may be open for ever.
        self._vigil.cut()
        await self._last_words()
        await drained(drain)

    async def _last_words(self) -> None:
        """What has been said goes out, if anybody takes it."""
        if self._vigil.open:
            await asyncio.wait(list(self._vigil.open), timeout=LAST_WORDS_S)
        self._connections.close()
        for _ in range(int(LAST_WORDS_S / QUIET_S)):
            await asyncio.sleep(0)
            if not self._connections:
                return
            await asyncio.sleep(QUIET_S)
        self._connections.abort()


async def start(
    engine: Engine,
    *,
    address: str,
    options: Options | None = None,
    services: Sequence[Service] = (),
    on_end: OnEnd = lambda method, code: None,
    rest: Asgi | None = None,
    vigil: Vigil | None = None,
) -> Serving:
    """Listen on `address` (host:port, port 0 for any; or unix:PATH) and serve `engine`.

    `services`: more than the Open Inference Protocol, health and reflection. `rest`:
    answers what is no gRPC. `vigil`: sees all calls, that one's too if it is given it.
    Raises CannotListen.
    """
    options, vigil = options or Options(), vigil or Vigil()
    answering, limit = services_of(engine, options, services), options.max_message_bytes
    calls = Calls(
        {
            f"/{service.name}/{method.name}".encode(): Direct(
                f"/{service.name}/{method.name}", method, limit, vigil, on_end
            )
            for service in answering.all
            for method in service.methods
            if not method.gives_stream
        },
        Application(answering.all, rest or _nothing, vigil, limit, on_end),
    )
    connections = Connections(lambda: len(vigil.open) >= PENDING_HARD)

    def connected() -> Connection:
        return Connection(calls.begin, connections, limit + UNREAD)

    listening, dialled, port = await _listening(connected, address, options.reuse_port)
    _log.info("the server listens", address=dialled)
    health = answering.health
    end = Answering(engine, health, vigil, connections, listening).end
    return Serving(dialled, port, options.grace, end)


async def _listening(
    connected: Callable[[], Connection], address: str, shared: bool
) -> tuple[asyncio.Server, str, int]:
    """The server, where to dial it, and its port if it has one."""
    loop = asyncio.get_running_loop()
    if address.startswith("unix:"):
        path = address.removeprefix("unix:")
        try:
            return await loop.create_unix_server(connected, path), address, 0
        except OSError as error:
            raise CannotListen(
                f"cannot listen on {address}: is it a path where a socket may be made?"
            ) from error
    host, _, port = address.rpartition(":")
    opened = listener(host.strip("[]"), int(port), shared)
    got: int = opened.getsockname()[1]
    made = await loop.create_server(connected, sock=opened, backlog=BACKLOG)
    return made, f"{host}:{got}", got


async def _nothing(scope: Message, receive: Receive, send: Send) -> None:
    """There is no REST here."""
    await receive()
    await send({"type": "http.response.start", "status": 404, "headers": []})
    await send({"type": "http.response.body", "body": b""})
