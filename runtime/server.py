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
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType

import grpc
import structlog
from google.protobuf.internal import api_implementation
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection

from protos import open_inference_pb2
from runtime.engine import Engine
from runtime.health import Health
from runtime.interceptor import ErrorBorder
from runtime.methods import Method, Service, answered_by
from runtime.repository import Repository
from runtime.service import OpenInference, Readiness
from runtime.status import Code

_log = structlog.get_logger()

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
"""A request or answer. grpc's own 4 MiB is a batch of seven images."""

PENDING_SOFT, PENDING_HARD = 12_000, 16_000
"""Calls that wait for a handler. grpc drops from 1,000 at random, and half of a burst
of 10,000 calls for one cold model is lost as CANCELLED; without any limit a flood of
reset streams takes half a GiB. So: 1.5 times the burst we promise to take."""

MAX_METADATA, ABSOLUTE_MAX_METADATA = 8 * 1024, 16 * 1024
"""Headers: refused at random between the two, always above."""

LAST_WORDS_S = 1.0
"""Given to answers that are being written, and then to leases that are being ended,
once the engine is drained or the grace is over."""


QUIET_S = 0.1
"""So long without a new call, and the listener may go."""


@dataclass(frozen=True, slots=True)
class Options:
    """What an operator may set. `grace`: seconds from SIGTERM until running calls are
    cut. `reuse_port`: several processes share one port on purpose."""

    max_message_bytes: int = MAX_MESSAGE_BYTES
    grace: float = 30.0
    reuse_port: bool = False
    name: str = "hotset"
    ready_means: Readiness = "servable"
    reflection: bool = True


class CannotListen(Exception):
    """The address is taken, or is not ours to take."""


class Serving:
    """A running server; `port` is the one it got, `address` the one to dial."""

    def __init__(
        self,
        server: grpc.aio.Server,
        engine: Engine,
        health: Health,
        border: ErrorBorder,
        grace: float,
    ) -> None:
        self._server = server
        self._border = border
        self._engine = engine
        self._health = health
        self._grace = grace
        self._stopping: asyncio.Task[None] | None = None
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

    async def told_to_stop(self) -> None:
        """Return at the first SIGTERM or SIGINT; the next one is the system's."""
        loop, told = asyncio.get_running_loop(), asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, told.set)
        try:
            await told.wait()
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

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
        # Draining first: the listener stays, so that whoever comes now hears
        # UNAVAILABLE with a hint instead of a refused connection.
        drain = asyncio.ensure_future(self._engine.drain())
        await asyncio.wait({drain}, timeout=grace)
        if not drain.done():
            _log.warning("the grace is over, running calls are cut")
        await self._quiet()
        # Nothing that answers runs any more, but idle streams may be open for ever.
        await self._server.stop(LAST_WORDS_S)
        # stop() can return while handlers still run: the engine waits for its leases.
        await asyncio.wait({drain}, timeout=LAST_WORDS_S)
        if not drain.done():
            _log.error("the engine did not drain, leaving all the same")
            drain.cancel()
            return
        drain.result()

    async def _quiet(self) -> None:
        """Refuse on until nobody calls any more, or LAST_WORDS_S have passed.

        Calls that reach grpc's core in the very moment it stops are dropped as
        CANCELLED, which no client retries; our refusal is UNAVAILABLE, which all do.
        """
        for _ in range(int(LAST_WORDS_S / QUIET_S)):
            before = self._border.calls
            await asyncio.sleep(QUIET_S)
            if self._border.calls == before:
                return


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
    # The pure-Python parser recurses into a message (CVE-2025-4565); upb does not.
    assert api_implementation.Type() == "upb", "protobuf runs without upb"
    inference = answered_by(
        open_inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"],
        OpenInference(
            engine,
            name=options.name,
            ready_means=options.ready_means,
            max_answer=options.max_message_bytes,
        ),
        Repository(engine),
    )
    health = Health(engine, [inference.name, *(service.name for service in services)])
    answered = [
        inference,
        *services,
        answered_by(health_pb2.DESCRIPTOR.services_by_name["Health"], health),
    ]
    border = ErrorBorder(on_end)
    server = grpc.aio.server(interceptors=[border], options=_channel_arguments(options))
    server.add_generic_rpc_handlers([_handlers(service) for service in answered])
    if options.reflection:
        names = [service.name for service in answered]
        reflection.enable_server_reflection([*names, reflection.SERVICE_NAME], server)
    serving = Serving(server, engine, health, border, options.grace)
    serving.port = _listen(server, address)
    serving.address = _dialled(address, serving.port)
    await server.start()
    _log.info("the server listens", address=serving.address)
    return serving


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


def _handlers(service: Service) -> grpc.GenericRpcHandler:
    return grpc.method_handlers_generic_handler(
        service.name, {method.name: _handler(method) for method in service.methods}
    )


def _handler(method: Method) -> "grpc.RpcMethodHandler[Message, Message]":
    make: Callable[..., grpc.RpcMethodHandler[Message, Message]]
    if not method.gives_stream:
        make = grpc.unary_unary_rpc_method_handler
    elif method.takes_stream:
        make = grpc.stream_stream_rpc_method_handler
    else:
        make = grpc.unary_stream_rpc_method_handler
    return make(
        method.function,
        request_deserializer=method.request.FromString,
        response_serializer=method.response.SerializeToString,
    )


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
        # Half-open connections are found within 40 s; idle ones are closed.
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.max_connection_idle_ms", 300_000),
        # Once an hour clients connect anew, and so find new replicas.
        ("grpc.max_connection_age_ms", 3_600_000),
        ("grpc.max_connection_age_grace_ms", 600_000),
        # Clients may ping every 10 s; those who flood are sent away.
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.http2.max_ping_strikes", 2),
    ]
