"""All connections of a server: who is there, who is idle, who is stuck.

Owns: them, and the limits that hold for each (runtime/limits.py). Must not: read or
write, or listen.
"""

import asyncio
from collections.abc import Callable

from runtime.http2.connection import Connection
from runtime.limits import CONNECTION_AGE_S, IDLE_S, STUCK_S

LOOK_S = 10.0


class Callers:
    """`full`: True while no more calls are taken."""

    def __init__(self, full: Callable[[], bool]) -> None:
        self._full = full
        self._loop = asyncio.get_running_loop()
        self._there: set[Connection] = set()
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._there)

    def took(self, connection: Connection) -> None:
        """Somebody has connected."""
        self._there.add(connection)
        if self._timer is None:
            self._timer = self._loop.call_later(LOOK_S, self._look)

    def lost(self, connection: Connection) -> None:
        """Somebody is gone."""
        self._there.discard(connection)

    def refuses(self) -> bool:
        """See Callers in runtime/http2/connection.py."""
        return self._full()

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
        now = self._loop.time()
        for connection in list(self._there):
            look_at(connection, now)
        self._timer = self._loop.call_later(LOOK_S, self._look) if self._there else None


def look_at(connection: Connection, now: float) -> None:
    """Hold one to its limits. `now`: on the event loop's clock."""
    silent = now - connection.heard
    if connection.stuck and silent > STUCK_S:
        connection.abort()
    elif not connection.streams and (silent > IDLE_S or connection.retired):
        connection.close()
    elif now - connection.born > CONNECTION_AGE_S:
        connection.retire()
