"""Turns: whose chunks the loader's threads move first.

A load that a request waits for is urgent. What is brought in ahead of any request (by
prewarm, by prefetch) is not: while anything urgent is under way, its next chunk waits.

Owns: that order. Must not: begin or cancel a load, or interrupt a chunk that moves.
All but the chunks themselves belongs to the event loop.
"""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextvars import ContextVar
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(eq=False, slots=True)
class Errand:
    """Why bytes are moved. `hurried`: told when it becomes urgent."""

    urgent: bool = True
    hurried: Callable[[], None] | None = None


ERRAND: ContextVar[Errand | None] = ContextVar("errand", default=None)
"""Of the task that runs; None counts as urgent."""


@dataclass(eq=False, slots=True)
class Chunk:
    """Work that waits for its turn."""

    errand: Errand
    start: Callable[[], None]
    cancel: Callable[[], bool]


class Turns:
    """The urgent errands under way, and the chunks of others that wait for them."""

    def __init__(self) -> None:
        self._urgent: set[Errand] = set()
        self._put_off: deque[Chunk] = deque()

    def __repr__(self) -> str:
        return f"<Turns: {len(self._urgent)} urgent, {len(self._put_off)} put off>"

    def begin(self, errand: Errand) -> None:
        """Its bytes are wanted from now on; `end` is owed."""
        if errand.urgent:
            self._urgent.add(errand)

    def hurry(self, errand: Errand) -> None:
        """A request waits for it as well now."""
        errand.urgent = True
        self._urgent.add(errand)
        if errand.hurried is not None:
            errand.hurried()
        self._let_go()

    def call_off(self, errand: Errand) -> None:
        """Nobody wants it any more: what waits for its turn is cancelled, what moves
        ends with its chunk."""
        for chunk in [c for c in self._put_off if c.errand is errand]:
            self._put_off.remove(chunk)
            chunk.cancel()

    def end(self, errand: Errand) -> None:
        """It is over, however."""
        self._urgent.discard(errand)
        self._let_go()

    def waits(self, errand: Errand | None) -> bool:
        """True if its next chunk has to wait."""
        return bool(self._urgent) and errand is not None and not errand.urgent

    def put_off(self, chunk: Chunk) -> None:
        """Start it when it may."""
        self._put_off.append(chunk)

    def _let_go(self) -> None:
        for chunk in [c for c in self._put_off if not self.waits(c.errand)]:
            self._put_off.remove(chunk)
            chunk.start()


class Crew(Executor):
    """The loader's threads, to be asked in the task that runs an errand."""

    def __init__(self, threads: Executor, turns: Turns) -> None:
        self._threads = threads
        self._turns = turns

    def submit(
        self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
    ) -> Future[T]:
        """See Executor. Put off, the work can be cancelled until it begins."""
        errand = ERRAND.get()
        if errand is None or not self._turns.waits(errand):
            return self._threads.submit(fn, *args, **kwargs)
        future: Future[T] = Future()

        def work() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(fn(*args, **kwargs))
                except BaseException as error:  # noqa: BLE001 - whoever waits raises it
                    future.set_exception(error)

        def start() -> None:
            self._threads.submit(work)

        self._turns.put_off(Chunk(errand, start, future.cancel))
        return future
