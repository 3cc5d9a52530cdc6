"""Who leaves when room is needed: the one place that picks victims.

Owns: the choice, made whole before anybody leaves. Must not: evict, wait, or look at
anything but what it is given; pinned and used models are simply not candidates.

1. Is it possible? If all candidates together do not give `need`, nobody leaves.
2. The lowest density goes first, until the need is met.
3. Spare those not needed: walk the victims from the dearest back and keep each whose
   bytes are not needed after all (a big late victim often frees enough alone).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from eviction.policy import Policy


@dataclass(frozen=True, slots=True)
class Candidate:
    """A resident that may leave. `reload_s`: what bringing it back would take now."""

    model: str
    nbytes: int
    reload_s: float
    priority: int = 0
    tenant: str = ""
    since: float = 0.0
    load_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Plan:
    """`short` > 0: infeasible by that many bytes, and `victims` is empty.

    `lost`: expected seconds of waiting that leave with the victims.
    """

    victims: tuple[str, ...] = ()
    freed: int = 0
    short: int = 0
    lost: float = 0.0

    @property
    def price(self) -> float:
        """What a byte costs here now, in seconds; 0 while nobody has to leave."""
        return self.lost / self.freed if self.freed else 0.0


def plan(
    policy: Policy, candidates: Sequence[Candidate], need: int, now: float
) -> Plan:
    """The victims that free at least `need` bytes, none of whom could stay."""
    if need <= 0:
        return Plan()
    available = sum([c.nbytes for c in candidates])
    if available < need:
        return Plan(short=need - available)
    density = policy.density(
        [c.model for c in candidates], now, [c.reload_s for c in candidates]
    )
    taken: list[int] = []
    freed = 0
    for i in sorted(range(len(candidates)), key=density.__getitem__):
        taken.append(i)
        freed += candidates[i].nbytes
        if freed >= need:
            break
    victims: list[int] = []
    for i in reversed(taken):
        if freed - candidates[i].nbytes >= need:
            freed -= candidates[i].nbytes
        else:
            victims.append(i)
    victims.reverse()
    return Plan(
        victims=tuple(candidates[i].model for i in victims),
        freed=freed,
        lost=sum(density[i] * candidates[i].nbytes for i in victims),
    )
