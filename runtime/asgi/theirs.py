"""Waiting for a future that is somebody else's, who will set it come what may.

Owns: that wait, which can be called off while the future cannot. Must not: know what
the future brings.

`asyncio.shield` does the same with a second future, two callbacks and a lap of the loop
more: some 8 us, which every request pays at least once.
"""

import asyncio
from collections.abc import Callable, Generator
from contextvars import Context
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Theirs(Generic[T]):
    """`await Theirs(future)`: its result. A task that is cancelled meanwhile goes on at
    once, and the future stays as it is.

    A future as far as a task looks at the one it waits for (asyncio/futures.py,
    "duck-typed")."""

    __slots__ = ("_asyncio_future_blocking", "_context", "_future", "_left", "_wake")

    def __init__(self, future: "asyncio.Future[T]") -> None:
        self._future = future
        self._asyncio_future_blocking = False
        self._wake: Callable[[Any], object] | None = None
        self._context: Context | None = None
        self._left = False

    def __await__(self) -> Generator[Any, None, T]:
        if not self._future.done():
            self._asyncio_future_blocking = True
            yield self
        return self.result()

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """Whose task may wait for it."""
        return self._future.get_loop()

    def add_done_callback(
        self, wake: Callable[[Any], object], *, context: Context | None = None
    ) -> None:
        """A task begins to wait."""
        self._wake, self._context = wake, context
        self._future.add_done_callback(wake, context=context)

    def cancel(self, msg: object = None) -> bool:
        """The task has been cancelled: it is woken, as if by a cancelled future."""
        wake = self._wake
        if wake is None or self._left or self._future.done():
            return False
        self._left = True
        self._future.remove_done_callback(wake)
        self.get_loop().call_soon(wake, self, context=self._context)
        return True

    def result(self) -> T:
        """What it brought; CancelledError for a task that did not wait."""
        if self._left:
            raise asyncio.CancelledError
        return self._future.result()
