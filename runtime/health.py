"""grpc.health.v1: is this server serving?

Owns: the answer, read from the engine whenever it is asked for, so that it can never be
stale. Must not: know front ends, or hold a status of its own apart from "closing".
"""

import asyncio
from collections.abc import AsyncIterator, Iterable

from grpc_health.v1 import health_pb2 as pb

from runtime.call import Call
from runtime.engine import Engine
from runtime.status import UnknownService

LOOK_AGAIN_S = 0.25
"""How often a Watch looks at the engine, which tells nobody when it becomes ready."""


class Health:
    """Check, List and Watch, for "" (the whole server) and each service by name."""

    def __init__(self, engine: Engine, services: Iterable[str]) -> None:
        self._engine = engine
        self._services = frozenset(services) | {""}
        self._closing = asyncio.Event()

    def close(self) -> None:
        """Say NOT_SERVING from now on, and let those who watch go."""
        self._closing.set()

    async def Check(
        self, request: pb.HealthCheckRequest, call: Call
    ) -> pb.HealthCheckResponse:
        if request.service not in self._services:
            raise UnknownService("unknown service")
        return pb.HealthCheckResponse(status=self._status(request.service))

    async def List(
        self, request: pb.HealthListRequest, call: Call
    ) -> pb.HealthListResponse:
        response = pb.HealthListResponse()
        for service in self._services:
            response.statuses[service].status = self._status(service)
        return response

    async def Watch(
        self, request: pb.HealthCheckRequest, call: Call
    ) -> AsyncIterator[pb.HealthCheckResponse]:
        said: pb.HealthCheckResponse.ServingStatus | None = None
        while not self._closing.is_set():
            status = self._status(request.service)
            if status != said:
                yield pb.HealthCheckResponse(status=status)
                said = status
            try:
                await asyncio.wait_for(self._closing.wait(), LOOK_AGAIN_S)
            except TimeoutError:
                continue
        # The last word; a stream left open would hold up the server's stop.
        yield pb.HealthCheckResponse(status=self._status(request.service))

    def _status(self, service: str) -> pb.HealthCheckResponse.ServingStatus:
        if service not in self._services:
            return pb.HealthCheckResponse.SERVICE_UNKNOWN
        if self._engine.ready and not self._closing.is_set():
            return pb.HealthCheckResponse.SERVING
        return pb.HealthCheckResponse.NOT_SERVING
