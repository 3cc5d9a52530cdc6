"""Who leaves when room is needed: the one place that picks victims.

Owns: the choice, made whole before anybody leaves. Must not: evict, wait, or look at
anything but what it is given; pinned models and those in use are simply no candidates.

1. The lowest density goes first, until the need is met. Before density counts, in this
   order: who has stayed at least as long as its own load took goes before who has not;
   a tenant over its quota pays before others do; low priority goes before high.
   Nobody's bytes shrink a tenant below its floor, except for that tenant's own sake.
2. Spare those not needed: walk the victims from the dearest back and keep each whose
   bytes are not needed after all (a big late victim often frees enough alone).
3. If all that may leave do not give `need`, nobody does: `short` says what is missing.

A tenant at its hard quota makes room among its own (`own_need`): others owe nothing.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from eviction.candidates import Candidates
from eviction.policy import Policy

SAMPLE = 16
"""Every how manyth density is looked at to guess who is worth sorting first."""


@dataclass(frozen=True, slots=True)
class Share:
    """A tenant's part of the budget, in bytes; `held` counts pinned and used ones too.

    `floor`: others do not push it below. `quota`: above it, it pays first. `ceiling`:
    it never holds more.
    """

    held: int
    floor: int = 0
    quota: int | None = None
    ceiling: int | None = None


NO_SHARES: Mapping[str, Share] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Plan:
    """`short` > 0: infeasible by that many bytes, and `victims` is empty.

    `lost`: expected seconds of waiting that leave with the victims. `early`: victims
    that have not stayed as long as their load took; many of these are a spiral.
    `density` and `rank` (0 leaves first) of each victim, of `ranked` candidates.
    """

    victims: tuple[str, ...] = ()
    freed: int = 0
    short: int = 0
    lost: float = 0.0
    early: int = 0
    density: tuple[float, ...] = ()
    rank: tuple[int, ...] = ()
    ranked: int = 0

    @property
    def price(self) -> float:
        """What a byte costs here now, in seconds; 0 while nobody has to leave."""
        return self.lost / self.freed if self.freed else 0.0


def plan(
    policy: Policy,
    candidates: Candidates,
    need: int,
    now: float,
    *,
    shares: Mapping[str, Share] = NO_SHARES,
    tenant: str = "",
) -> Plan:
    """The victims that free at least `need` bytes for `tenant`; all of them are needed.

    Density ties leave in the order given.
    """
    if need <= 0:
        return Plan()
    if not candidates:
        return Plan(short=need)
    models, nbytes = candidates.models, candidates.nbytes
    density = policy.density(models, now, candidates.reload_s)
    if shares or len(set(candidates.priority)) > 1:
        order = _by_rank(candidates, density, now, shares)
    else:
        order = _by_density(candidates, density, now)
    taken, freed = _take(candidates, order, need, shares, tenant)
    if freed < need:
        return Plan(short=need - freed)
    victims, freed = _spare(candidates, taken, freed, need)
    return Plan(
        victims=tuple([models[i] for i in victims]),
        freed=freed,
        lost=sum([density[i] * nbytes[i] for i in victims]),
        early=sum([candidates.early(i, now) for i in victims]),
        density=tuple([density[i] for i in victims]),
        rank=tuple([taken.index(i) for i in victims]),
        ranked=len(candidates),
    )


def own_need(shares: Mapping[str, Share], tenant: str, nbytes: int) -> int:
    """What `tenant` must free of its own before it may hold `nbytes` more.

    Above 0: plan this among its own candidates first, then the rest among all.
    """
    share = shares.get(tenant)
    if share is None or share.ceiling is None:
        return 0
    return max(0, share.held + nbytes - share.ceiling)


def _by_density(
    candidates: Candidates, density: Sequence[float], now: float
) -> Iterator[int]:
    """Lowest first, the early ones after all others."""
    early = []
    for i in _ascending(density):
        if candidates.early(i, now):
            early.append(i)
        else:
            yield i
    yield from early


def _ascending(density: Sequence[float]) -> Iterator[int]:
    """Positions of the lowest, the next, ...: few are ever wanted, so few are sorted.

    The third lowest of a sample parts the low from the rest; the order is exact.
    """
    everyone = range(len(density))
    if len(density) < 4 * SAMPLE:
        yield from sorted(everyone, key=density.__getitem__)
        return
    edge = sorted(density[::SAMPLE])[2]
    low = [i for i, d in enumerate(density) if d <= edge]
    yield from sorted(low, key=density.__getitem__)
    rest = [i for i, d in enumerate(density) if not d <= edge]
    yield from sorted(rest, key=density.__getitem__)


def _by_rank(
    candidates: Candidates,
    density: Sequence[float],
    now: float,
    shares: Mapping[str, Share],
) -> Iterator[int]:
    """Early ones last, payers first, low priority first, then by density.

    Who pays changes while bytes are taken: a tenant pays until it is at its quota.
    """
    order = sorted(
        range(len(candidates)),
        key=lambda i: (
            candidates.early(i, now),
            candidates.rank(i),
            density[i],
        ),
    )
    over = {
        tenant: share.held - share.quota
        for tenant, share in shares.items()
        if share.quota is not None and share.held > share.quota
    }
    paid = set()
    for i in order:
        owner, nbytes = candidates.owner(i), candidates.nbytes[i]
        if over.get(owner, 0) > 0 and not candidates.early(i, now):
            over[owner] -= nbytes
            paid.add(i)
            yield i
    yield from (i for i in order if i not in paid)


def _take(
    candidates: Candidates,
    order: Iterable[int],
    need: int,
    shares: Mapping[str, Share],
    tenant: str,
) -> tuple[list[int], int]:
    """In that order until the need is met, leaving each tenant its floor."""
    above = {
        name: share.held - share.floor
        for name, share in shares.items()
        if share.floor and name != tenant
    }
    taken, freed = [], 0
    for i in order:
        owner, nbytes = candidates.owner(i), candidates.nbytes[i]
        if owner in above:
            if nbytes > above[owner]:
                continue
            above[owner] -= nbytes
        taken.append(i)
        freed += nbytes
        if freed >= need:
            break
    return taken, freed


def _spare(
    candidates: Candidates, taken: Sequence[int], freed: int, need: int
) -> tuple[list[int], int]:
    """Walk from the dearest back; whoever is not needed stays."""
    victims = []
    for i in reversed(taken):
        if freed - candidates.nbytes[i] >= need:
            freed -= candidates.nbytes[i]
        else:
            victims.append(i)
    victims.reverse()
    return victims, freed
