"""HTTP: health, metrics, the status report, inference.

    GET /v2  /v2/health/live  /v2/health/ready      Open Inference Protocol
    GET, POST /v2/models/...                        the same (runtime/rest_models.py)
    GET /metrics                                    Prometheus or OpenMetrics
    GET /hotset/status                              what `hotset top` shows
    GET /hotset/explain/MODEL[?version=V]           what `hotset explain` shows
    GET /                                           {"status": "alive"}

Owns: the routes and the HTTP server. Must not: know more of hotset than an `Engine`,
steal the process' signals, or do work on the loop that a thread can do.

The server runs on the engine's own event loop, on purpose: a liveness probe should
fail when that loop is stuck, and a snapshot is only true on the loop that owns the
cache. What takes milliseconds (a metrics page) is made in a thread.
"""

import asyncio
import contextlib
import math
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from runtime import explanation
from runtime.asgi.vigil import Vigil
from runtime.engine import Engine
from runtime.failures import forget_frames
from runtime.limits import MAX_MESSAGE_BYTES
from runtime.ports import BACKLOG, listener
from runtime.ports import CannotListen as CannotListen
from runtime.report import About, Report, encode
from runtime.rest_models import Models
from runtime.status import answer_to

Endpoint = Callable[[Request], Awaitable[Response]]

FRESH = {"cache-control": "no-store"}
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


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """What `/v2` tells of this server."""

    name: str
    version: str
    extensions: Sequence[str] = ("binary_tensor_data",)


class Exposition(Protocol):
    """Who makes the metrics' page (runtime/metrics.py)."""

    async def exposition(self, engine: Engine, accept: str) -> tuple[bytes, str]:
        """The page and its content type, in the format that `accept` asks for."""
        ...


def application(
    engine: Engine,
    metrics: Exposition,
    info: ServerInfo,
    limit: int = MAX_MESSAGE_BYTES,
    vigil: Vigil | None = None,
) -> Starlette:
    """The routes over an engine. `limit`: bytes of a body; `vigil` sees predicts."""

    async def alive(_: Request) -> Response:
        return JSONResponse({"status": "alive"})

    async def server(_: Request) -> Response:
        return JSONResponse(
            {
                "name": info.name,
                "version": info.version,
                "extensions": list(info.extensions),
            }
        )

    # Clients differ in which key they look for: both, in both answers.
    async def live(_: Request) -> Response:
        return JSONResponse({"live": True, "ready": engine.ready})

    async def ready(_: Request) -> Response:
        is_ready = engine.ready
        return JSONResponse({"ready": is_ready, "live": True}, 200 if is_ready else 503)

    async def exposition(request: Request) -> Response:
        accept = request.headers.get("accept", "")
        page, content_type = await metrics.exposition(engine, accept)
        return Response(page, headers={"content-type": content_type})

    async def status(_: Request) -> Response:
        about = About(info.name, info.version, engine.ready)
        report = Report(about, await engine.snapshot())
        body = await asyncio.to_thread(encode, report)
        return Response(body, headers=FRESH, media_type="application/json")

    async def explain(request: Request) -> Response:
        version = request.query_params.get("version", "")
        found = await engine.explain(request.path_params["model"], version)
        return Response(
            explanation.encode(found), headers=FRESH, media_type="application/json"
        )

    routes = {
        ("GET", "/"): alive,
        ("GET", "/v2"): server,
        ("GET", "/v2/health/live"): live,
        ("GET", "/v2/health/ready"): ready,
        ("GET", "/metrics"): exposition,
        ("GET", "/hotset/status"): status,
        ("GET", "/hotset/explain/{model}"): explain,
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
