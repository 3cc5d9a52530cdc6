"""What every child of the supervisor is: somebody who waits to begin, and is told when
to stop.

Owns: the way into a child's event loop and out of it. Must not: know what it does.
"""

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import structlog

from runtime import collector, logs
from runtime.config import Settings
from runtime.loading import Unservable
from runtime.nvml import GaugeUnavailable
from runtime.ports import CannotListen
from runtime.tree.child import Role
from runtime.tree.control import Beat, Begin, Control, Meet, Message, Stop, Unfit

log = structlog.get_logger()


class Member:
    """This process, as the supervisor knows it."""

    def __init__(self, end: socket.socket) -> None:
        self._control = Control(end, self._heard, self._orphaned)
        self._loop = asyncio.get_running_loop()
        self.begun: asyncio.Future[tuple[Begin, Sequence[int]]]
        self.begun = self._loop.create_future()
        self.told_to_stop = asyncio.Event()
        self._early: list[tuple[Meet, Sequence[int]]] = []
        self._on_meet: Callable[[Meet, Sequence[int]], None] | None = None

    @property
    def on_meet(self) -> Callable[[Meet, Sequence[int]], None] | None:
        """Told of everybody this process is introduced to."""
        return self._on_meet

    @on_meet.setter
    def on_meet(self, told: Callable[[Meet, Sequence[int]], None]) -> None:
        self._on_meet = told
        for message, fds in self._early:
            told(message, fds)
        self._early.clear()

    def say(self, message: Message) -> None:
        """Tell the supervisor."""
        self._control.say(message)

    def _heard(self, message: Message, fds: Sequence[int]) -> None:
        if isinstance(message, Begin):
            self.begun.set_result((message, fds))
        elif isinstance(message, Stop):
            self.told_to_stop.set()
        elif isinstance(message, Meet):
            if self._on_meet is None:
                self._early.append((message, fds))
            else:
                self._on_meet(message, fds)

    def _orphaned(self) -> None:
        os._exit(1)


@contextlib.asynccontextmanager
async def beating(
    member: Member, limit: float, look: Callable[[], None] = lambda: None
) -> AsyncIterator[None]:
    """While the block runs, the supervisor hears that the loop turns: four times in
    what it takes for hung, or each second. `look` is called as often."""

    async def beat() -> None:
        while True:
            member.say(Beat())
            look()
            await asyncio.sleep(min(1.0, limit / 4))

    task = asyncio.create_task(beat())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


Run = Callable[[Member, Begin, Settings, Sequence[int]], Awaitable[None]]
"""What a child is for, until it is told to stop."""


async def live(role: Role, end: socket.socket) -> int:
    """A child's whole life; its exit code."""
    loop, member = asyncio.get_running_loop(), Member(end)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, lambda: None)  # the supervisor says when
    # What takes seconds to import is there before there is anything to do, and the
    # collector has been through it.
    from runtime.tree import engine, front

    run = engine.run if role == "engine" else front.run
    with collector.settled():
        return await _live(role, member, run)


async def _live(role: Role, member: Member, run: Run) -> int:
    begin, fds = await member.begun
    settings = Settings.model_validate(begin.values)
    logs.configure(settings.log_format, settings.log_level)
    try:
        await run(member, begin, settings, fds)
    except (Unservable, GaugeUnavailable, CannotListen) as error:
        member.say(Unfit(str(error)))
        return 1
    except Exception:
        log.exception("a process of the server failed", role=role)
        return 1
    return 0


def main(role: Role, fd: int) -> int:
    """A child's life, over the descriptor that it was started with."""
    from runtime.commands.serve import loop_factory

    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(live(role, socket.socket(fileno=fd)))
