"""A call that has been asked and not yet been answered, and what a lost engine means
for it.

    lost with the engine ---> a suspect: asked again, run alone
         again, and it was the one that ran ---> once more; BLAMED_AT_MOST: Poisonous
         again, and another one ran         ---> asked again
         LOST_AT_MOST times                 ---> refused: EngineLost

Owns: that table. Must not: send anything, or know how an engine is lost.

Everything a front end asks may be asked twice: a predict is a pure function, and the
others say what shall be, not what to do. With many requests in flight a lost engine
says nothing about which of them was its end; so the second time they run one by one,
and the engine notes in shared memory which one it has begun. Calls that are no suspects
run beside it all the same, and one of those may be the end: once is no proof.
"""

import asyncio
from dataclasses import dataclass, field

from runtime.errors import EngineLost, Poisonous, Refused
from runtime.link.messages import Ask, Predict

LOST_AT_MOST = 5
"""Engines that one call may see go, without being the reason."""

BLAMED_AT_MOST = 2
"""Engines that may go while they run this one as their only suspect."""


@dataclass(eq=False, slots=True)
class Pending:
    """One call. `stretches`: of shared memory, its own until it has been answered."""

    asked: Predict | Ask
    answer: "asyncio.Future[object]"
    stretches: list[int] = field(default_factory=list)
    sent: bool = False
    lost: int = 0
    blamed: int = 0
    alarm: asyncio.TimerHandle | None = None

    def engine_lost(self, noted: int) -> Refused | None:
        """The engine went while it had this call; `noted`: the suspect it ran. Gives
        the refusal if it may not be asked again."""
        if not self.sent:
            return None
        self.sent = False
        self.lost += 1
        if noted == self.asked.call:
            self.blamed += 1
            if self.blamed >= BLAMED_AT_MOST:
                text = "the engine ended twice while it ran this request to be sure"
                return Poisonous(text)
        if self.lost >= LOST_AT_MOST:
            return EngineLost(f"the engine was lost {self.lost} times over this", 1.0)
        if isinstance(self.asked, Predict):
            self.asked.suspect = True
        return None

    def quiet(self) -> None:
        """No alarm any more."""
        if self.alarm is not None:
            self.alarm.cancel()
            self.alarm = None
