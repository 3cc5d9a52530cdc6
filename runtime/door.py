"""The door: loads ask for room here and are let in one after the other.

Owns: the queue of those who want in, the slots of loads under way, and the booking of
a load's bound in the breath it is let in. Must not: choose victims or load anything;
it says who is next and lacks room, the cache sees to it.

First come, first served, on purpose: letting small models overtake a big one that
waits would starve it for as long as small ones keep coming. Only who is `barred` (its
tenant may hold no more) is stepped over: others' room would not help it.

Who is not urgent (no request waits for it) stands behind all who are, takes none of
their slots, and comes in only where there is room: nobody leaves for it.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from eviction.ledger import Ledger


@dataclass(eq=False, slots=True)
class Want:
    """Somebody in line: room for `need` bytes for `key`, please."""

    key: str
    need: int
    admitted: asyncio.Future[None]
    urgent: bool = True


class Door:
    """A FIFO before the ledger, with `slots` loads at once behind it."""

    def __init__(self, ledger: Ledger, slots: int) -> None:
        self._ledger = ledger
        self._line: deque[Want] = deque()
        self._slots = slots
        self.loads = 0
        """Urgent loads let in and not ended yet."""
        self.behind = 0
        """The others."""
        self.barred: Callable[[Want], bool] = lambda want: False

    def __len__(self) -> int:
        return len(self._line)

    def __contains__(self, key: object) -> bool:
        return any(want.key == key for want in self._line)

    def stand(self, key: str, need: int, urgent: bool = True) -> Want:
        """Get in line."""
        want = Want(key, need, asyncio.get_running_loop().create_future(), urgent)
        self._line.append(want)
        return want

    async def enter(self, want: Want) -> None:
        """Wait to be let in; from then on `leave` is owed.

        Cancelled while in line: out of the line. Cancelled in the very turn of being
        let in: the slot goes back, the booking is the caller's to release.
        """
        try:
            await want.admitted
        except asyncio.CancelledError:
            if want.admitted.cancelled():
                if want in self._line:
                    self._line.remove(want)
            else:
                self.leave(want)
            raise

    def leave(self, want: Want) -> None:
        """A load that was let in has ended, however."""
        if want.urgent:
            self.loads -= 1
        else:
            self.behind -= 1

    def hurry(self, key: str) -> None:
        """A request waits for it from now on: it stands where it would have come now,
        behind the urgent."""
        for want in list(self._line):
            if want.key == key and not want.urgent:
                want.urgent = True
                self._line.remove(want)
                self._line.append(want)

    def admit(self) -> Want | None:
        """Let in whom there is room for, in order; gives the next one if it lacks room.

        None if nobody is left in line, or if the next one lacks a slot and not room.
        """
        while self._line and self.loads < self._slots:
            want = next((w for w in self._urgent() if not self.barred(w)), None)
            if want is None:
                break
            if want.need > self._ledger.free:
                return want
            self._let_in(want)
            self.loads += 1
        if self._line and not self.behind and not any(self._urgent()):
            want = next((w for w in self._waiting() if not self.barred(w)), None)
            if want is not None and want.need <= self._ledger.free:
                self._let_in(want)
                self.behind += 1
        return None

    def _let_in(self, want: Want) -> None:
        self._line.remove(want)
        self._ledger.hold(want.key, want.need)
        want.admitted.set_result(None)

    def stopped(self) -> list[Want]:
        """Those stepped over, in order."""
        return [want for want in self._waiting() if self.barred(want)]

    def _urgent(self) -> Iterator[Want]:
        return (want for want in self._waiting() if want.urgent)

    def _waiting(self) -> Iterator[Want]:
        """Without those cancelled in this turn of the loop."""
        return (want for want in self._line if not want.admitted.done())
