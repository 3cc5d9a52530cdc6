"""The watch over calls in flight: who has left, and whose time is up.

Owns: every open call, and when one is cancelled from outside. Must not: decide how a
cancelled call ends.

Inside Envoy nobody tells an application that its caller has left: once the request is
whole, `receive()` answers at once, with an empty message while the caller is there and
with `http.disconnect` when it is not. So it is asked, but only for calls that have
been open for a while, and for so many a second at most: hits are over before they are
looked at, and ten thousand waiting calls cost no more than two hundred.
"""

import asyncio
from typing import Any

from runtime.asgi.types import Message, Receive
from runtime.limits import BODY_S
from runtime.status import Code, Status

TICK_S = 0.1
"""How often the calls are looked at; one that is younger is left alone."""
ASKED = 200
"""Calls that are asked about at a tick. A question costs some 30 us."""

LATE = Status(Code.DEADLINE_EXCEEDED, 504, "the call outlived its deadline")
CUT = Status(Code.UNAVAILABLE, 503, "the server is shutting down")


class Caller:
    """One call, as a service sees it (runtime/call.py) and as the watch does.

    `watched`: False while a `receive()` is awaited by itself, which will tell when the
    caller leaves, but not when its time is up. `asked`: a `receive()` under way that
    the call shares with the watch.
    `whole`: all of a stream's request has been read, so what is still received can only
    be the caller's end. `fate`: how the call ends if it is cancelled; None, as its
    caller has left.
    """

    __slots__ = ("asked", "deadline", "fate", "receive", "watched", "whole")

    def __init__(self, receive: Receive) -> None:
        self.receive = receive
        self.deadline: float | None = None
        self.asked: asyncio.Future[Message] | None = None
        self.watched = False
        self.whole = True
        self.fate: Status | None = None

    def give_up_after(self, seconds: float) -> None:
        """The caller has set a deadline."""
        self.deadline = asyncio.get_running_loop().time() + seconds

    def time_remaining(self) -> float | None:
        """Seconds until the caller gives up; None if it set no deadline."""
        if self.deadline is None:
            return None
        return max(self.deadline - asyncio.get_running_loop().time(), 0.0)

    def has_left(self) -> bool:
        """True once the caller is known to be gone; asks anew where it is not."""
        asked = self.asked
        if asked is not None:
            if not asked.done():
                return False
            message = asked.result()
            if message["type"] == "http.disconnect":
                return True
            if not self.whole:
                return False  # a part of the request, for whoever reads that
        self.asked = asyncio.ensure_future(self.receive())
        return False


class Vigil:
    """All open calls. `calls` counts those that have ever come."""

    def __init__(self) -> None:
        self.calls = 0
        self.open: dict[asyncio.Future[Any], Caller] = {}
        self._old: dict[asyncio.Future[Any], float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def begin(
        self, caller: Caller, task: "asyncio.Future[Any] | None" = None
    ) -> "asyncio.Future[Any]":
        """A call begins in `task`, by default the current one, and must end with `del
        open[task]`. (To ask which one is current takes 2 us before Python 3.12.)"""
        self.calls += 1
        task = task or asyncio.current_task()
        assert task is not None
        self.open[task] = caller
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(TICK_S, self._tick)
        return task

    def cut(self) -> None:
        """Cancel what is still open: the grace is over."""
        for task, caller in list(self.open.items()):
            caller.fate = CUT
            task.cancel()

    def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        self._look(now)
        for task in self.open:
            self._old.setdefault(task, now)
        self._timer = loop.call_later(TICK_S, self._tick) if self.open else None

    def _look(self, now: float) -> None:
        """At all deadlines, and at some callers, those not seen for longest first."""
        asked, old = 0, self._old
        for task, since in list(old.items()):
            caller = self.open.get(task)
            if caller is None:
                del old[task]
            elif (caller.deadline is not None and caller.deadline <= now) or (
                not caller.watched and now - since > BODY_S
            ):
                caller.fate = LATE
                task.cancel()
            elif caller.watched and asked < ASKED:
                asked += 1
                del old[task]
                old[task] = since
                if caller.has_left():
                    task.cancel()
