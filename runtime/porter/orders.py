"""What a porter was told to do and has not answered yet.

Owns: who waits for which answer, and that nobody goes on before it: until a porter has
answered or has been reaped it may write to the block that it was given. Must not: start
one, or know what becomes of its bytes.
"""

import asyncio
import itertools
from functools import partial

from loader.threads import settled
from loader.turns import Errand
from runtime.porter.messages import (
    BUG,
    CALLED_OFF,
    UNTOLD,
    CallOff,
    Copy,
    Done,
    Failed,
    Fill,
    Hurry,
    error_of,
)
from runtime.porter.process import Process

SLOW_S = 30.0
"""How long a load that was called off may take to say so; after that its process counts
as hung, and is killed."""


class Gone(Exception):
    """The process ended before it answered, or does not listen."""


class Orders:
    """Those of all its lives. One event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._calls: dict[int, asyncio.Future[Done | Failed]] = {}
        self._numbers = itertools.count(1)

    def number(self) -> int:
        """Of the next one."""
        return next(self._numbers)

    async def give(
        self, process: Process | None, order: Fill | Copy, errand: Errand | None = None
    ) -> Done:
        """Its answer; when this returns or raises, the porter writes there no more.
        `errand`: what it is for, if that is not urgent yet. Raises Gone, and one of
        loader.errors."""
        call = order.call
        answer: asyncio.Future[Done | Failed] = self._loop.create_future()
        if process is None or not process.say(order):
            raise Gone
        self._calls[call] = answer
        if errand is not None:
            errand.hurried = partial(_hurry, process, call)
        try:
            told = await asyncio.shield(answer)
        except asyncio.CancelledError:
            await self._called_off(process, call, answer)
            raise
        finally:
            if errand is not None:
                errand.hurried = None
        if isinstance(told, Failed):
            raise Gone if told.kind in (UNTOLD, CALLED_OFF, BUG) else error_of(told)
        return told

    def told(self, report: Done | Failed) -> None:
        """An answer has come."""
        answer = self._calls.pop(report.call, None)
        if answer is not None and not answer.done():
            answer.set_result(report)

    def over(self) -> None:
        """No more will."""
        calls, self._calls = self._calls, {}
        for answer in calls.values():
            if not answer.done():
                answer.set_exception(Gone())
                answer.exception()  # read: who asked may have been called off

    async def _called_off(
        self, process: Process, call: int, answer: "asyncio.Future[Done | Failed]"
    ) -> None:
        process.say(CallOff(call))
        late = self._loop.call_later(SLOW_S, process.kill)
        await settled(answer)
        late.cancel()


def _hurry(process: Process, call: int) -> None:
    process.say(Hurry(call))
