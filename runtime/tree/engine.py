"""The engine's process: what `hotset serve` composes, without a front end.

Owns: its composition, the front ends it is introduced to, and its pulse. Must not:
listen anywhere, or believe a front end.
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Sequence
from importlib.metadata import version

import structlog

from loader.store import Store
from runtime import compose
from runtime.census import tell
from runtime.config import Settings
from runtime.counts import Counts
from runtime.inheritance import Inheritance
from runtime.link.answering import Answering
from runtime.link.memory import Region
from runtime.local import LocalEngine
from runtime.metrics import Metrics
from runtime.tree.control import Begin, Meet, Residents, Up, fitting
from runtime.tree.member import Member, beating

log = structlog.get_logger()

HUNG = 71
"""Exit code when a forward has run for longer than --predict-timeout."""

LISTED_S = 1.0
"""How often the supervisor hears who is resident, if that has changed."""


async def run(
    member: Member, begin: Begin, settings: Settings, fds: Sequence[int]
) -> None:
    """Answer front ends until told to stop."""
    counts = Counts(settings.metrics_top)
    metrics = Metrics(counts, version("hotset"))
    metrics.restarts = begin.restarts
    store = Store.open(settings.store)
    async with compose.composed(
        settings,
        counts,
        lambda: leave(compose.DEVICE_LOST),
        store,
        Inheritance(
            begin.residents, (fds[0], fds[1]) if fds else None, begin.onednn_from
        ),
    ) as engine:
        meeting = _Meeting(engine, metrics)
        member.on_meet = meeting.meet
        snapshot = await engine.snapshot()
        about: dict[str, str | int] = {
            "device": snapshot.device,
            "capacity": snapshot.capacity,
            "policy": snapshot.policy,
            "onednn_from": snapshot.onednn_from,
        }
        member.say(Up(about))
        async with _pulse(member, engine, store, settings.predict_timeout):
            await member.told_to_stop.wait()
    meeting.close()


def leave(code: int) -> None:
    """End now, mid-sentence: what is lost must not be answered, it is asked again."""
    log.critical("the engine leaves", code=code)
    os._exit(code)


class _Meeting:
    """The front ends of this engine."""

    def __init__(self, engine: LocalEngine, metrics: Metrics) -> None:
        self._engine = engine
        self._metrics = metrics
        self._suspects = asyncio.Lock()
        self._answering: set[Answering] = set()
        self._opening: set[asyncio.Task[None]] = set()

    def meet(self, message: Meet, fds: Sequence[int]) -> None:
        """A front end is introduced."""
        end, answers, requests = fds
        answering = Answering(
            self._engine,
            self._metrics,
            Region(requests),
            Region(answers),
            self._suspects,
            lambda: self._answering.discard(answering),
        )
        self._answering.add(answering)
        task = asyncio.ensure_future(answering.open(socket.socket(fileno=end)))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    def close(self) -> None:
        """What was answered is still said."""
        for answering in list(self._answering):
            answering.close()


@contextlib.asynccontextmanager
async def _pulse(
    member: Member, engine: LocalEngine, store: Store, limit: float
) -> AsyncIterator[None]:
    """While the block runs, the supervisor hears that the loop turns and who is in."""
    tasks = [
        asyncio.create_task(_list(member, engine)),
        asyncio.create_task(tell(store)),
    ]

    def look() -> None:
        if engine.longest_forward() > limit:
            log.critical("a forward runs for too long", limit=limit)
            leave(HUNG)

    try:
        async with beating(member, limit, look):
            yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _list(member: Member, engine: LocalEngine) -> None:
    told: set[tuple[str, str]] = set()
    while True:
        await asyncio.sleep(LISTED_S)
        snapshot = await engine.snapshot()
        ready = [r for r in snapshot.residents if r.state == "READY"]
        ready.sort(key=lambda r: r.idle_s)
        models = fitting([(r.name, r.version) for r in ready])
        if set(models) != told:
            told = set(models)
            member.say(Residents(models))
