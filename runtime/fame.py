"""Which models have a name of their own in the metrics: those with the most traffic.

Owns: the choice, and the record of each chosen model. Must not: know a metric's name or
a clock.

Hundreds of thousands of models times a few series each would bury a Prometheus, so at
most `top` models are chosen at a time and at most twice as many have ever a record:
one that loses its place keeps its series, until somebody with more traffic needs it.
All others share one record under the name `_other`.

Elections happen every `term` events, not every so many seconds: a busy server follows
its traffic quickly, a quiet one has nothing to follow.
"""

from collections.abc import Callable, Iterable
from typing import Generic, Protocol, TypeVar

from runtime.histogram import OTHER

MANY_CANDIDATES = 4096
"""Models without a place whose traffic is counted towards the next election."""


class Counted(Protocol):
    """A record that knows how much traffic it saw lately."""

    recent: float


R = TypeVar("R", bound=Counted)


class Fame(Generic[R]):
    """name -> record; `of` is called on the hot path."""

    def __init__(self, top: int, make: Callable[[], R], term: int = 10_000) -> None:
        self._top = top
        self._make = make
        self._term = term
        self._left = term
        self._records: dict[str, R] = {}
        self._candidates: dict[str, int] = {}
        self.other = make()

    def of(self, name: str) -> R:
        """The record that one more event of `name` belongs to."""
        self._left -= 1
        if not self._left:
            self._elect()
        record = self._records.get(name)
        if record is None:
            record = self._unknown(name)
        record.recent += 1
        return record

    def seen(self, name: str) -> R | None:
        """The record of `name` if it has one of its own; nothing is counted."""
        return self._records.get(name)

    def all(self) -> Iterable[tuple[str, R]]:
        """Every record there is, `_other` last."""
        return [*self._records.copy().items(), (OTHER, self.other)]

    def _unknown(self, name: str) -> R:
        if name == OTHER:  # a model may be called that, and must not be counted twice
            return self.other
        if len(self._records) < self._top:
            return self._records.setdefault(name, self._make())
        count = self._candidates.get(name)
        if count is not None or len(self._candidates) < MANY_CANDIDATES:
            self._candidates[name] = (count or 0) + 1
        return self.other

    def _elect(self) -> None:
        """Give the places of this term; what was before counts half."""
        votes = {name: record.recent for name, record in self._records.items()}
        ranked = sorted({**votes, **self._candidates}.items(), key=lambda x: -x[1])
        for name, _ in ranked[: self._top]:
            if name not in self._records:
                self._records[name] = self._make()
        # Whoever has the fewest votes gives up the record that is one too many.
        for name, _ in reversed(ranked):
            if len(self._records) <= 2 * self._top:
                break
            self._records.pop(name, None)
        for record in self._records.values():
            record.recent /= 2
        self._candidates.clear()
        self._left = self._term
