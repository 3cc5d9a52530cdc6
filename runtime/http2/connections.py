"""All connections of a server: who is there, who is idle, who takes nothing.

Owns: them, and the limits that hold for each (runtime/limits.py). Must not: read or
write, or listen.
"""

import asyncio
from collections.abc import Callable

from runtime.http2.connection import Connection
from runtime.limits import CONNECTION_AGE_S, IDLE_S, STUCK_S

LOOK_S = 10.0


class Connections:
    """All that are open. `full`: True while no more calls are taken."""

    def __init__(self, full: Callable[[], bool]) -> None:
        self._full = full
        self._loop = asyncio.get_running_loop()
        self._there: set[Connection] = set()
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._there)

    def took(self, connection: Connection) -> None:
        """One is there."""
        self._there.add(connection)
        if self._timer is None:
            self._timer = self._loop.call_later(LOOK_S, self._look)

    def lost(self, connection: Connection) -> None:
        """One is gone."""
        self._there.discard(connection)

    def refuses(self) -> bool:
        """See Owner in runtime/http2/connection.py."""
        return self._full()

    @property
    def sending(self) -> bool:
        """Somebody has not got all of an answer yet."""
        return any(connection.sending for connection in self._there)

    def retire(self) -> None:
        """Everybody is to make the next call elsewhere."""
        for connection in list(self._there):
            connection.retire()

    def close(self) -> None:
        """Nobody is answered any more."""
        if self._timer is not None:
            self._timer.cancel()
        for connection in list(self._there):
            connection.close()

    def abort(self) -> None:
        """What is left after that does not read what it has been sent."""
        for connection in list(self._there):
            connection.abort()

    def _look(self) -> None:
        """At all of them, now and then."""
        now, self._timer = self._loop.time(), None
        if self._there:
            self._timer = self._loop.call_later(LOOK_S, self._look)
        for connection in list(self._there):
            look_at(connection, now)


def look_at(connection: Connection, now: float) -> None:
    """Hold one to its limits. `now`: on the event loop's clock."""
    age, silent = now - connection.born, now - connection.heard
    if connection.over:
        if now - connection.ended > LOOK_S:  # what was written before is not taken
            connection.abort()
    elif connection.stalled(now) > STUCK_S:
        connection.abort()
    elif connection.streams or connection.sending:
        if age > CONNECTION_AGE_S:
            connection.retire()
    elif connection.retired or silent > IDLE_S:
        connection.close()
    elif age > CONNECTION_AGE_S:
        connection.retire()
