"""What the server tells of itself over HTTP.

    GET /                                           {"status": "alive"}
    GET /v2  /v2/health/live  /v2/health/ready      Open Inference Protocol
    GET /metrics                                    Prometheus or OpenMetrics
    GET /hotset/status                              what `hotset top` shows
    GET /hotset/explain/MODEL[?version=V]           what `hotset explain` shows

Owns: those routes. Must not: know more of hotset than an `Engine`, or do work on the
loop that a thread can do.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from runtime import explanation
from runtime.engine import Engine
from runtime.report import About, Report, encode
from runtime.rest_models import Endpoint

FRESH = {"cache-control": "no-store"}


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


class Pages:
    """The endpoints about the server."""

    def __init__(self, engine: Engine, metrics: Exposition, info: ServerInfo) -> None:
        self._engine = engine
        self._metrics = metrics
        self._info = info

    def routes(self) -> Mapping[tuple[str, str], Endpoint]:
        """Endpoint by method and path."""
        return {
            ("GET", "/"): self.alive,
            ("GET", "/v2"): self.server,
            ("GET", "/v2/health/live"): self.live,
            ("GET", "/v2/health/ready"): self.ready,
            ("GET", "/metrics"): self.exposition,
            ("GET", "/hotset/status"): self.status,
            ("GET", "/hotset/explain/{model}"): self.explain,
        }

    async def alive(self, _: Request) -> Response:
        """For whoever looks whether anything listens here."""
        return JSONResponse({"status": "alive"})

    async def server(self, _: Request) -> Response:
        """What this server is."""
        return JSONResponse(
            {
                "name": self._info.name,
                "version": self._info.version,
                "extensions": list(self._info.extensions),
            }
        )

    async def live(self, _: Request) -> Response:
        """It answers: it is alive."""
        # Clients differ in which key they look for: both, in both answers.
        return JSONResponse({"live": True, "ready": self._engine.ready})

    async def ready(self, _: Request) -> Response:
        """503 while it drains."""
        is_ready = self._engine.ready
        return JSONResponse({"ready": is_ready, "live": True}, 200 if is_ready else 503)

    async def exposition(self, request: Request) -> Response:
        """The metrics."""
        accept = request.headers.get("accept", "")
        page, content_type = await self._metrics.exposition(self._engine, accept)
        return Response(page, headers={"content-type": content_type})

    async def status(self, _: Request) -> Response:
        """The snapshot that `hotset top` shows."""
        about = About(self._info.name, self._info.version, self._engine.ready)
        report = Report(about, await self._engine.snapshot())
        body = await asyncio.to_thread(encode, report)
        return Response(body, headers=FRESH, media_type="application/json")

    async def explain(self, request: Request) -> Response:
        """Why a model is here or is not."""
        version = request.query_params.get("version", "")
        found = await self._engine.explain(request.path_params["model"], version)
        return Response(
            explanation.encode(found), headers=FRESH, media_type="application/json"
        )
