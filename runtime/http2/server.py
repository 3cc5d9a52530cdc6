"""The server of the front end `zttp`: a socket that listens, and the order of its end.

Owns: these, as runtime/server.py does for grpc.aio, whose steps it follows. Must not:
know what a method does, or create the engine.
"""

import asyncio
from collections.abc import Sequence
from types import TracebackType

import structlog

from runtime.asgi.application import Application
from runtime.asgi.telling import OnEnd
from runtime.asgi.types import Asgi, Message, Receive, Send
from runtime.asgi.vigil import Vigil
from runtime.engine import Engine
from runtime.health import Health
from runtime.http2.callers import Callers
from runtime.http2.connection import Connection
from runtime.http2.direct import Direct
from runtime.limits import LAST_WORDS_S, PENDING_HARD, QUIET_S, Options
from runtime.methods import Service
from runtime.ports import listener
from runtime.services import services_of
from runtime.stopping import told_to_stop

_log = structlog.get_logger()

UNREAD = 1 << 20
"""Bytes of a request above the largest message that may wait for who answers it."""


class Serving:
    """A running server; `address` is the one to dial, `port` the one it got."""

    def __init__(
        self,
        engine: Engine,
        health: Health,
        vigil: Vigil,
        callers: Callers,
        grace: float,
    ) -> None:
        self._engine = engine
        self._health = health
        self._vigil = vigil
        self._callers = callers
        self._grace = grace
        self._stopping: asyncio.Task[None] | None = None
        self._listening: asyncio.Server | None = None
        self.port = 0
        self.address = ""

    def __repr__(self) -> str:
        return f"<Serving on {self.address}>"

    async def __aenter__(self) -> "Serving":
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()

    def listens(self, listening: asyncio.Server, port: int, address: str) -> None:
        """It is there."""
        self._listening, self.port, self.address = listening, port, address

    async def told_to_stop(self) -> None:
        """Return at the first SIGTERM or SIGINT; the next one is the system's."""
        await told_to_stop()

    async def stop(self, grace: float | None = None) -> None:
        """Stop serving; returns when no call is running and the engine is empty.

        Called again, it waits for the stop that is under way.
        """
        if self._stopping is None:
            seconds = self._grace if grace is None else grace
            self._stopping = asyncio.ensure_future(self._stop(seconds))
        await asyncio.shield(self._stopping)

    async def _stop(self, grace: float) -> None:
        _log.info("the server stops", address=self.address, grace=grace)
        self._health.close()
        # Who has a connection is told to make the next one elsewhere, and is refused
        # with UNAVAILABLE and a hint if it calls here all the same. (Not who connects
        # from now on: told so before its first call, it has failed to connect.)
        self._callers.retire()
        loop = asyncio.get_running_loop()
        ends = loop.time() + grace
        drain = asyncio.ensure_future(self._engine.drain())
        await asyncio.wait({drain}, timeout=grace)
        # The engine is done with a call before its caller has all of the answer.
        while self._callers.sending and loop.time() < ends:  # noqa: ASYNC110
            await asyncio.sleep(QUIET_S)
        if not drain.done():
            _log.warning("the grace is over, running calls are cut")
            self._vigil.cut()
        await self._quiet()
        if self._listening is not None:
            self._listening.close()
        # Idle streams may be open for ever.
        self._vigil.cut()
        await self._last_words()
        await asyncio.wait({drain}, timeout=LAST_WORDS_S)
        if not drain.done():
            _log.error("the engine did not drain, leaving all the same")
            drain.cancel()
            return
        drain.result()

    async def _quiet(self) -> None:
        """Refuse on until nobody calls any more, or LAST_WORDS_S have passed."""
        for _ in range(int(LAST_WORDS_S / QUIET_S)):
            before = self._vigil.calls
            await asyncio.sleep(QUIET_S)
            if self._vigil.calls == before:
                return

    async def _last_words(self) -> None:
        """What has been said goes out, if anybody takes it."""
        if self._vigil.open:
            await asyncio.wait(list(self._vigil.open), timeout=LAST_WORDS_S)
        self._callers.close()
        for _ in range(int(LAST_WORDS_S / QUIET_S)):
            await asyncio.sleep(0)
            if not self._callers:
                return
            await asyncio.sleep(QUIET_S)
        self._callers.abort()


async def start(
    engine: Engine,
    *,
    address: str,
    options: Options | None = None,
    services: Sequence[Service] = (),
    on_end: OnEnd = lambda method, code: None,
    rest: Asgi | None = None,
) -> Serving:
    """Listen on `address` (host:port, port 0 for any; or unix:PATH) and serve `engine`.

    `services`: more than the Open Inference Protocol, health and reflection. `rest`:
    answers what is no gRPC. Raises CannotListen.
    """
    options = options or Options()
    answering = services_of(engine, options, services)
    vigil, limit = Vigil(), options.max_message_bytes
    callers = Callers(lambda: len(vigil.open) >= PENDING_HARD)
    app = Application(answering.all, rest or _nothing, vigil, limit, on_end)
    direct = {
        path.encode(): Direct(path, method, limit, vigil, on_end)
        for service in answering.all
        for method in service.methods
        for path in (f"/{service.name}/{method.name}",)
        if not method.gives_stream
    }
    serving = Serving(engine, answering.health, vigil, callers, options.grace)

    def connected() -> Connection:
        return Connection(direct, app, callers, limit + UNREAD)

    loop = asyncio.get_running_loop()
    if address.startswith("unix:"):
        path = address.removeprefix("unix:")
        serving.listens(await loop.create_unix_server(connected, path), 0, address)
    else:
        host, _, port = address.rpartition(":")
        opened = listener(host.strip("[]"), int(port), options.reuse_port)
        got = opened.getsockname()[1]
        listening = await loop.create_server(connected, sock=opened)
        serving.listens(listening, got, f"{host}:{got}")
    _log.info("the server listens", address=serving.address)
    return serving


async def _nothing(scope: Message, receive: Receive, send: Send) -> None:
    """There is no REST here."""
    await receive()
    await send({"type": "http.response.start", "status": 404, "headers": []})
    await send({"type": "http.response.body", "body": b""})
