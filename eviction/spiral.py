"""Spirals: models that are wanted back before bringing them back would have taken.

When more is in demand at once than fits, every load pushes out what the next request
wants, and the device loads without end. What is seen: a model is wanted again within
its own load time of being evicted (a relapse). When more than `SHARE` of the last
`LOADS` loads were relapses, the cache spirals, until it is less than half of that.

While it does, whoever came stays for `STAY` times its load time, so that at most one
part in `STAY` + 1 of its time here is spent coming; and a newcomer worth less than all
it could push out is told to come again, at most `TURNS` times in a row (P. J. Denning,
"Thrashing: Its Causes and Prevention", AFIPS 1968: shed load, do not share misery).

Owns: the record of relapses and of who was sent away. Must not: evict or refuse.
"""

from collections import OrderedDict, deque
from typing import TypeVar

T = TypeVar("T")

SHARE = 0.3
LOADS = 32
"""A load or two of bad luck are not a spiral: judged from half as many on."""
STAY = 4.0
"""Loading then takes at most a fifth of a place's time."""
TURNS = 3
"""Then it stands in line like everybody: nobody is put off for ever."""
REMEMBERED = 4096
_NEVER = float("-inf")


class Spiral:
    """Told of wishes, loads and evictions; `turning` is its one answer."""

    def __init__(self, on: bool = True) -> None:
        self._on = on
        self._evicted: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._relapsed: OrderedDict[str, bool] = OrderedDict()
        self._sent_away: OrderedDict[str, int] = OrderedDict()
        self._loads: deque[bool] = deque(maxlen=LOADS)
        self.turning = False
        self.relapses = self.deferred = 0

    def __repr__(self) -> str:
        return f"<Spiral {'turning' if self.turning else 'at rest'}: {self.share:.2f}>"

    @property
    def share(self) -> float:
        """Of the last loads, those that were relapses."""
        return sum(self._loads) / len(self._loads) if self._loads else 0.0

    def told(self) -> dict[str, float]:
        """The numbers, for a log line."""
        return {"share": round(self.share, 3), "relapses": self.relapses}

    def wanted(self, model: str, now: float) -> None:
        """An absent model is asked for. Its first wish counts, not its retries."""
        left, load_s = self._evicted.get(model, (_NEVER, 0.0))
        if now - left <= load_s:
            _note(self._relapsed, model, True)
            self._evicted[model] = (_NEVER, load_s)

    def loaded(self, model: str) -> bool:
        """It came; True if the spiral began or ended with it."""
        self._sent_away.pop(model, None)
        relapsed = self._relapsed.pop(model, False)
        self.relapses += relapsed
        self._loads.append(relapsed)
        limit = SHARE / 2 if self.turning else SHARE
        turning = self._on and len(self._loads) >= LOADS / 2 and self.share > limit
        changed, self.turning = turning is not self.turning, turning
        return changed

    def evicted(self, model: str, load_s: float, now: float) -> None:
        """It left, and had taken so long to come."""
        _note(self._evicted, model, (now, load_s))

    def took(self, model: str) -> float:
        """Seconds that its last load took; 0.0 if nobody remembers."""
        return self._evicted.get(model, (_NEVER, 0.0))[1]

    def stays_until(self, since: float, load_s: float) -> float:
        """Until when one that has been here `since` is left in peace."""
        return since + STAY * load_s if self.turning else 0.0

    def send_away(self, model: str) -> bool:
        """Whether a cold newcomer may be sent away once more; if so, it is counted."""
        turns = self._sent_away.get(model, 0)
        if turns >= TURNS:
            return False
        _note(self._sent_away, model, turns + 1)
        self.deferred += 1
        return True


def _note(book: OrderedDict[str, T], model: str, what: T) -> None:
    """The newest `REMEMBERED` are kept."""
    book[model] = what
    book.move_to_end(model)
    if len(book) > REMEMBERED:
        book.popitem(last=False)
