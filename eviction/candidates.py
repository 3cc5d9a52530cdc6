"""Who may leave, in columns: what a plan has to know of every resident at once.

Owns: the shape. Must not: choose (eviction/plan.py), or look anything up.

A policy wants names and costs of all, and nothing else of most: a thousand records
made anew for each decision would cost more than the decision. So it is columns that
are handed over; a column may be left empty where all residents have the same.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Candidate(NamedTuple):
    """One of them, where one is enough.

    `reload_s`: what bringing it back would take now. `since`: when its load ended, on
    the clock of the plan's `now`; `load_s`: how long that load took.
    """

    model: str
    nbytes: int
    reload_s: float
    priority: int = 0
    tenant: str = ""
    since: float = 0.0
    load_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Candidates:
    """All of them. Empty columns: no priorities, no tenants, nobody came lately."""

    models: Sequence[str] = ()
    nbytes: Sequence[int] = ()
    reload_s: Sequence[float] = ()
    priority: Sequence[int] = ()
    tenant: Sequence[str] = ()
    since: Sequence[float] = ()
    load_s: Sequence[float] = ()

    @classmethod
    def of(cls, rows: Iterable[Candidate]) -> "Candidates":
        """From one record each."""
        return cls(*zip(*rows, strict=True))

    def __len__(self) -> int:
        return len(self.models)

    def __getitem__(self, i: int) -> Candidate:
        since, load_s = (self.since[i], self.load_s[i]) if self.load_s else (0.0, 0.0)
        return Candidate(
            self.models[i],
            self.nbytes[i],
            self.reload_s[i],
            self.rank(i),
            self.owner(i),
            since,
            load_s,
        )

    def owner(self, i: int) -> str:
        """Its tenant."""
        return self.tenant[i] if self.tenant else ""

    def rank(self, i: int) -> int:
        """Its priority."""
        return self.priority[i] if self.priority else 0

    def early(self, i: int, now: float) -> bool:
        """It has not been here for as long as it took to come."""
        return bool(self.load_s) and now < self.since[i] + self.load_s[i]
