"""The announcement: that we serve, where and what.

Owns: the line that says so, and what is said beside it. Must not: hold up the serving,
however long a store takes to be looked through.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import structlog

from loader.store import Store
from runtime import collector
from runtime.census import tell
from runtime.engine import Engine

log = structlog.get_logger()

SMALL = 1 << 20
"""A budget below this is worth a warning: a model of some use has more bytes."""


@contextlib.asynccontextmanager
async def announced(
    engine: Engine, store: Store, grpc: str, http: str
) -> AsyncIterator[None]:
    """Say that we serve, where and what; how the store looks is said behind it."""
    with collector.settled():
        await _announce(engine, grpc, http)
        census = asyncio.create_task(tell(store))
        try:
            yield
        finally:
            await _ended(census)


async def _announce(engine: Engine, grpc: str, http: str) -> None:
    snapshot = await engine.snapshot()
    log.info(
        "serving",
        grpc=grpc,
        http=http,
        device=snapshot.device,
        capacity=snapshot.capacity,
        policy=snapshot.policy,
        onednn_from=snapshot.onednn_from,
    )
    if snapshot.capacity < SMALL:
        log.warning("hardly any model fits", capacity=snapshot.capacity)


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
