"""An alarm: one timer, set to the earliest moment that somebody named.

Owns: that timer. Must not: know what it is for.
"""

import asyncio
from collections.abc import Callable


class Alarm:
    """Calls `rings` once when the earliest moment set since it last rang has come."""

    def __init__(self, rings: Callable[[], None]) -> None:
        self._rings = rings
        self._timer: asyncio.Handle | None = None
        # Kept here: uvloop gives a handle without `when` for a moment that has come.
        self._when = 0.0

    def by(self, when: float) -> None:
        """Ring at `when` (loop clock), unless it rings before that anyway."""
        if self._timer is not None:
            if self._when <= when:
                return
            self._timer.cancel()
        self._when = when
        self._timer = asyncio.get_running_loop().call_at(when, self._ring)

    def off(self) -> None:
        """Do not ring."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _ring(self) -> None:
        self._timer = None
        self._rings()
