"""A gRPC server that listens, whichever front end it is of.

Owns: where it is, and that it is stopped once. Must not: know how it ends (`End`).

    async with await start(engine, address="127.0.0.1:8001") as serving:
        await serving.told_to_stop()
"""

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType

import structlog

from runtime.stopping import told_to_stop

_log = structlog.get_logger()

End = Callable[[float], Awaitable[None]]
"""Ends it, within so many seconds of grace: returns when no call is running and the
engine is empty."""


class Serving:
    """`address` is the one to dial, `port` the one it got; 0 for a Unix socket."""

    def __init__(self, address: str, port: int, grace: float, end: End) -> None:
        self.address = address
        self.port = port
        self._grace = grace
        self._end = end
        self._stopping: asyncio.Future[None] | None = None

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
        await told_to_stop()

    async def stop(self, grace: float | None = None) -> None:
        """Stop serving; returns when no call is running and the engine is empty.

        Called again, it waits for the stop that is under way.
        """
        if self._stopping is None:
            seconds = self._grace if grace is None else grace
            _log.info("the server stops", address=self.address, grace=seconds)
            self._stopping = asyncio.ensure_future(self._end(seconds))
        await asyncio.shield(self._stopping)
