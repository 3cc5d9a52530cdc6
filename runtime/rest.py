"""HTTP: health, metrics, the status report, inference.

    what the server tells of itself    runtime/rest_pages.py
    models, and inference              runtime/rest_models.py

Owns: the one application of all routes, and the HTTP server. Must not: steal the
process' signals.

The server runs on the engine's own event loop, on purpose: a liveness probe should
fail when that loop is stuck, and a snapshot is only true on the loop that owns the
cache. What takes milliseconds (a metrics page) is made in a thread.
"""

import asyncio
import contextlib
import math
import socket
from collections.abc import AsyncIterator, Iterator

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from runtime.asgi.vigil import Vigil
from runtime.engine import Engine
from runtime.failures import forget_frames
from runtime.limits import MAX_MESSAGE_BYTES
from runtime.ports import BACKLOG, listener
from runtime.ports import CannotListen as CannotListen
from runtime.rest_models import Endpoint, Models
from runtime.rest_pages import Exposition, Pages, ServerInfo
from runtime.status import answer_to

IDLE_S = 65
"""Connections that are idle for so long are closed; load balancers keep theirs 60 s."""
HEAD_S = 10.0
"""Within which a request's head must be whole, from its first byte (or from the
connection, for the first one)."""
LARGEST_HEAD = 16 * 1024
"""Bytes of a request line with its headers."""
CONCURRENT = 4096
"""Connections at a time; more are told 503."""
LAST_WORDS_S = 1
"""Given to answers that are being written when serving ends."""


def application(
    engine: Engine,
    metrics: Exposition,
    info: ServerInfo,
    limit: int = MAX_MESSAGE_BYTES,
    vigil: Vigil | None = None,
) -> Starlette:
    """The routes over an engine. `limit`: bytes of a body; `vigil` sees predicts."""
    routes = {
        **Pages(engine, metrics, info).routes(),
        **Models(engine, vigil or Vigil(), limit).routes(),
    }
    app = Starlette(
        routes=[
            Route(path, _answering(function), methods=[method])
            for (method, path), function in routes.items()
        ],
        exception_handlers={HTTPException: _refusal},
    )
    # A redirect would repeat the Host header, which is whatever the caller says.
    app.router.redirect_slashes = False
    return app


async def _refusal(_: Request, error: Exception) -> Response:
    """404 and 405, as JSON like every other answer."""
    assert isinstance(error, HTTPException)
    return JSONResponse(
        {"error": error.detail}, error.status_code, headers=error.headers
    )


def _answering(function: Endpoint) -> Endpoint:
    """Errors told as the one table says, which logs what it does not tell."""

    async def answer(request: Request) -> Response:
        try:
            return await function(request)
        except HTTPException:
            raise
        except Exception as error:  # noqa: BLE001 - nothing may leave as a stack trace
            status = answer_to(error, f"{request.method} {request.url.path}")
            forget_frames(error)
            headers = {}
            if status.retry is not None:
                headers["retry-after"] = str(math.ceil(status.retry))
            return JSONResponse({"error": status.text}, status.http, headers=headers)

    return answer


@contextlib.asynccontextmanager
async def listening(app: Starlette, host: str, port: int) -> AsyncIterator[int]:
    """Serve `app` while the block runs; gives the port it got (0 takes a free one).

    Raises CannotListen. If the server dies by itself, leaving the block raises why.
    """
    opened = listener(host, port)
    async with answering(app, opened):
        # It listens already: who connects before the server is up is answered then.
        yield opened.getsockname()[1]


@contextlib.asynccontextmanager
async def answering(app: Starlette, opened: socket.socket) -> AsyncIterator[None]:
    """Serve `app` on a socket that listens, others beside us perhaps."""
    server = _Embedded(
        uvicorn.Config(
            app,
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            proxy_headers=False,
            ws="none",
            backlog=BACKLOG,
            timeout_keep_alive=IDLE_S,
            timeout_graceful_shutdown=LAST_WORDS_S,
            h11_max_incomplete_event_size=LARGEST_HEAD,
            http=_Impatient,
            limit_concurrency=CONCURRENT,
        )
    )
    serving = asyncio.create_task(server.serve([opened]))
    try:
        yield
    finally:
        server.should_exit = True
        await serving


class _Embedded(uvicorn.Server):
    """A server that is a part of a process: signals are its owner's."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take none."""
        yield


class _Impatient(H11Protocol):
    """Closes connections that do not come to the point.

    uvicorn's only time limit begins when an answer ends: CONCURRENT connections that
    send half a head, or nothing, would keep liveness probes out for ever.
    """

    _late: asyncio.TimerHandle | None = None

    def connection_made(  # type: ignore[override]
        self, transport: asyncio.Transport
    ) -> None:
        """The first head may take HEAD_S."""
        super().connection_made(transport)
        self._late = self.loop.call_later(HEAD_S, transport.close)

    def data_received(self, data: bytes) -> None:
        """Whatever comes while nothing is being answered must become a head in time;
        the rest of a body that nobody reads is no exception."""
        super().data_received(data)
        cycle: RequestResponseCycle | None = self.cycle  # uvicorn's own hint lies
        if cycle is not None and not cycle.response_complete:
            self._cancel()
        elif self._late is None:
            self._late = self.loop.call_later(HEAD_S, self.transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        """A timer would hold the connection's buffers."""
        self._cancel()
        super().connection_lost(exc)

    def _cancel(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None
