"""Serving inside Envoy, from the moment it listens to the last answer.

Owns: the order in which serving ends, as runtime/server.py does for grpc.aio. Must not:
create the engine, or end the process.
"""

import asyncio
from importlib.metadata import version

import structlog

from runtime.asgi.application import Application
from runtime.asgi.telling import OnEnd
from runtime.asgi.types import Asgi
from runtime.asgi.vigil import Vigil
from runtime.config import Settings
from runtime.engine import Engine
from runtime.envoy.admin import Admin
from runtime.limits import Options
from runtime.rest import application
from runtime.rest_pages import Exposition, ServerInfo
from runtime.services import services_of
from runtime.stopping import drained, quiet

_log = structlog.get_logger()


class Serving:
    """One engine, answering; `app` is what Envoy calls."""

    def __init__(
        self,
        engine: Engine,
        rest: Asgi,
        vigil: Vigil,
        admin: Admin,
        options: Options,
        on_end: OnEnd = lambda method, code: None,
    ) -> None:
        self._engine = engine
        self._admin = admin
        self._grace = options.grace
        services = services_of(engine, options)
        self._health = services.health
        limit = options.max_message_bytes
        self.app = Application(services.all, rest, vigil, limit, on_end)
        self._vigil = vigil

    async def stop(self, grace: float | None = None) -> None:
        """Stop serving; returns when no call is running and the engine is empty."""
        seconds = self._grace if grace is None else grace
        _log.info("the server stops", grace=seconds)
        self._health.close()
        # Who has a connection is told to make the next one elsewhere, and is refused
        # with UNAVAILABLE and a hint if it asks here all the same.
        try:
            await self._admin.drain()
        except OSError:
            _log.warning("Envoy was not told to drain")
        drain = asyncio.ensure_future(self._engine.drain())
        await asyncio.wait({drain}, timeout=seconds)
        if not drain.done():
            _log.warning("the grace is over, running calls are cut")
            self._vigil.cut()
        await quiet(lambda: self._vigil.calls)
        # Idle streams may be open for ever.
        self._vigil.cut()
        await drained(drain)


def serving_of(
    settings: Settings, engine: Engine, exposition: Exposition, admin: Admin
) -> Serving:
    """gRPC and HTTP of an engine, as the settings say."""
    vigil = Vigil()
    info = ServerInfo(settings.server_name, version("hotset"))
    rest = application(engine, exposition, info, settings.max_message, vigil)
    options = Options(
        max_message_bytes=settings.max_message,
        grace=settings.grace,
        name=settings.server_name,
    )
    return Serving(engine, rest, vigil, admin, options)
