"""The grpc.aio server: options, services, start and graceful stop.

Owns: the listening socket and the order in which serving ends. Must not: know what a
method does, or create the engine: whoever calls start() owns that.

    async with await start(engine, address="127.0.0.1:8001") as serving:
        await serving.told_to_stop()

SIGTERM (or leaving the block): health says NOT_SERVING, the engine drains within the
grace while its refusals still reach their callers, then the listener closes and what is
left is cancelled. A second signal ends the process at once.
"""

import asyncio
from collections.abc import Callable, Sequence

import grpc
import structlog

from runtime.border import ErrorBorder
from runtime.engine import Engine
from runtime.health import Health
from runtime.limits import (
    ABSOLUTE_MAX_METADATA,
    CONNECTION_AGE_S,
    IDLE_S,
    KEEPALIVE_S,
    KEEPALIVE_TIMEOUT_S,
    LAST_WORDS_S,
    MAX_METADATA,
    PENDING_HARD,
    PENDING_SOFT,
)
from runtime.limits import Options as Options
from runtime.methods import Service
from runtime.ports import CannotListen as CannotListen
from runtime.services import services_of
from runtime.serving import Serving
from runtime.status import Code
from runtime.stopping import drained, quiet

_log = structlog.get_logger()


class Answering:
    """What has to end."""

    def __init__(
        self,
        server: grpc.aio.Server,
        engine: Engine,
        health: Health,
        border: ErrorBorder,
    ) -> None:
        self._server = server
        self._border = border
        self._engine = engine
        self._health = health

    async def end(self, grace: float) -> None:
        """See runtime.serving.End."""
        self._health.close()
        # Draining first: the listener stays, so that whoever comes now hears
        # UNAVAILABLE with a hint instead of a refused connection.
        drain = asyncio.ensure_future(self._engine.drain())
        await asyncio.wait({drain}, timeout=grace)
        if not drain.done():
            _log.warning("the grace is over, running calls are cut")
        # Calls that reach grpc's core in the very moment it stops are dropped as
        # CANCELLED, which no client retries; our refusal is UNAVAILABLE, which all do.
        await quiet(lambda: self._border.calls)
        # Nothing that answers runs any more, but idle streams may be open for ever.
        await self._server.stop(LAST_WORDS_S)
        # stop() can return while handlers still run: the engine waits for its leases.
        await drained(drain)


async def start(
    engine: Engine,
    *,
    address: str,
    options: Options | None = None,
    services: Sequence[Service] = (),
    on_end: Callable[[str, Code], None] = lambda method, code: None,
) -> Serving:
    """Listen on `address` (host:port, port 0 for any; or unix:PATH) and serve `engine`.

    `services`: more than the Open Inference Protocol, health and reflection.
    """
    options = options or Options()
    answering = services_of(engine, options, services)
    border = ErrorBorder(on_end)
    server = grpc.aio.server(options=_channel_arguments(options))
    handlers = [_handlers(service, border) for service in answering.all]
    server.add_generic_rpc_handlers(handlers)
    port = _listen(server, address)
    dialled = _dialled(address, port)
    await server.start()
    _log.info("the server listens", address=dialled)
    end = Answering(server, engine, answering.health, border).end
    return Serving(dialled, port, options.grace, end)


def _listen(server: grpc.aio.Server, address: str) -> int:
    try:
        return server.add_insecure_port(address)
    except RuntimeError as error:
        raise CannotListen(
            f"cannot listen on {address}: is another server there already? "
            "Choose another port (0: a free one)"
        ) from error


def _dialled(address: str, port: int) -> str:
    if address.startswith("unix:"):
        return address
    host, _, _ = address.rpartition(":")
    return f"{host}:{port}"


def _handlers(service: Service, border: ErrorBorder) -> grpc.GenericRpcHandler:
    made = {
        method.name: border.handler(service.name, method) for method in service.methods
    }
    return grpc.method_handlers_generic_handler(service.name, made)


def _channel_arguments(options: Options) -> list[tuple[str, int]]:
    """Options of grpc's core, each with its reason. Not set on purpose:
    max_concurrent_streams, which below 1,000 breaks clients that send before they have
    seen it; admission is the cache's business."""
    return [
        ("grpc.max_receive_message_length", options.max_message_bytes),
        ("grpc.max_send_message_length", options.max_message_bytes),
        ("grpc.server.max_pending_requests", PENDING_SOFT),
        ("grpc.server.max_pending_requests_hard_limit", PENDING_HARD),
        ("grpc.max_metadata_size", MAX_METADATA),
        ("grpc.absolute_max_metadata_size", ABSOLUTE_MAX_METADATA),
        # On by default, and then a second server silently takes half of the calls.
        ("grpc.so_reuseport", int(options.reuse_port)),
        ("grpc.keepalive_time_ms", KEEPALIVE_S * 1000),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_S * 1000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.max_connection_idle_ms", IDLE_S * 1000),
        ("grpc.max_connection_age_ms", CONNECTION_AGE_S * 1000),
        ("grpc.max_connection_age_grace_ms", 600_000),
        # Clients may ping every 10 s; those who flood are sent away.
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.http2.max_ping_strikes", 2),
    ]
