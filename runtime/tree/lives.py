"""The lives of a process that is replaced when it ends: how soon, and with what.

Owns: that arithmetic. Must not: start or end anything, or know a clock.
"""

from dataclasses import dataclass, field

SHORT_S = 5.0
"""A life below this was no life: the next one waits longer."""
WAITS_S = (0.0, 0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
"""Before the next life, after so many short ones in a row."""
TRUSTED = 3
"""Short lives in a row after which who was resident is no longer brought back: it may
be what ends them."""


@dataclass(slots=True)
class Lives:
    """`number` counts from 1; 0 before the first. `ends`: how often each reason."""

    number: int = 0
    short: int = 0
    ends: dict[str, int] = field(default_factory=dict)
    _began: float = 0.0

    def begin(self, now: float) -> int:
        """The next life; its number."""
        self.number += 1
        self._began = now
        return self.number

    def end(self, now: float, reason: str) -> float:
        """It ended; seconds to wait before the next."""
        self.short = self.short + 1 if now - self._began < SHORT_S else 0
        self.ends[reason] = self.ends.get(reason, 0) + 1
        return WAITS_S[min(self.short, len(WAITS_S) - 1)]

    @property
    def trusting(self) -> bool:
        """True if the next life may bring back who was resident."""
        return self.short < TRUSTED


def reason_of(code: int, killed_for: str) -> str:
    """Why a process ended. `killed_for`: our own reason, if we ended it."""
    if killed_for:
        return killed_for
    return {70: "device lost", 71: "hung"}.get(code, "crashed" if code else "left")
