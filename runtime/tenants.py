"""Tenants: what of the budget each may count on, and may hold at most.

    --tenant-shares "search=2GiB:4GiB:8GiB,ads=10%:20%"     NAME=FLOOR:QUOTA:CEILING

FLOOR: others never push it below. QUOTA (soft): above it, it makes room before others
do. CEILING (hard): it never holds more. Each is bytes or a share of the budget in force
at that moment; left out, there is none. A model's tenant stands in its manifest.

Owns: the reading of that setting, and who holds how much now. Must not: choose who
leaves (eviction/plan.py), or refuse anybody.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from eviction.ledger import Ledger
from eviction.plan import Share
from runtime.budget import Budget, BudgetRefused, parse_budget
from runtime.residency import M, Residency, Stage

FORM = "write NAME=FLOOR:QUOTA:CEILING, like 'search=2GiB:4GiB:8GiB,ads=10%:20%'"


@dataclass(frozen=True, slots=True)
class Quota:
    """What was configured for one tenant."""

    floor: Budget | None = None
    quota: Budget | None = None
    ceiling: Budget | None = None

    def __str__(self) -> str:
        sizes = (self.floor, self.quota, self.ceiling)
        return ":".join("" if s is None else _written(s) for s in sizes)

    def share(self, held: int, capacity: int) -> Share:
        """In bytes, as things stand."""
        return Share(
            held,
            self.floor.of(capacity) if self.floor else 0,
            self.quota.of(capacity) if self.quota else None,
            self.ceiling.of(capacity) if self.ceiling else None,
        )


@dataclass(frozen=True, slots=True)
class Tenants:
    """The configured tenants; without any, nobody is counted."""

    quotas: Mapping[str, Quota] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.quotas)

    def __str__(self) -> str:
        return ",".join(f"{name}={quota}" for name, quota in self.quotas.items())

    def shares(
        self, residencies: Mapping[str, Residency[M]], ledger: Ledger
    ) -> Mapping[str, Share]:
        """Who holds what: everything booked counts, on its way in or out too."""
        if not self.quotas:
            return {}
        held = dict.fromkeys(self.quotas, 0)
        for key, life in residencies.items():
            if life.spec.tenant in held and key in ledger:
                held[life.spec.tenant] += ledger.size(key)
        return {
            name: quota.share(held[name], ledger.capacity)
            for name, quota in self.quotas.items()
        }

    def ceiling(self, tenant: str, capacity: int) -> int | None:
        """The most it may hold; None if nobody said."""
        quota = self.quotas.get(tenant)
        if quota is None or quota.ceiling is None:
            return None
        return quota.ceiling.of(capacity)


def leaving_of(residencies: Iterable[Residency[M]], ledger: Ledger, tenant: str) -> int:
    """Bytes of a tenant that are on their way out."""
    return sum(
        ledger.size(life.spec.key)
        for life in residencies
        if life.stage is Stage.LEAVING
        and life.spec.tenant == tenant
        and life.spec.key in ledger
    )


def parse_tenants(value: str | Mapping[str, str]) -> Mapping[str, Quota]:
    """The setting, as one text or as a TOML table. ValueError says what is wrong."""
    if isinstance(value, str):
        pairs = [part.partition("=")[::2] for part in value.split(",") if part.strip()]
    else:
        pairs = list(value.items())
    quotas: dict[str, Quota] = {}
    for name, text in pairs:
        name = name.strip()
        if not name or name in quotas:
            raise ValueError(FORM)
        quotas[name] = _quota(text)
    floors = [q.floor for q in quotas.values() if q.floor]
    if sum(floor.percent for floor in floors if floor.nbytes is None) > 100:
        raise ValueError("the floors of all tenants are more than the whole budget")
    return quotas


def _written(size: Budget) -> str:
    return str(size.nbytes) if size.nbytes is not None else f"{size.percent}%"


def _quota(text: str) -> Quota:
    """FLOOR:QUOTA:CEILING, each of which may be left out."""
    parts = [part.strip() for part in text.split(":")]
    if not any(parts) or len(parts) > 3:
        raise ValueError(FORM)
    try:
        sizes = [
            parse_budget(part) if part not in ("", "0") else None for part in parts
        ]
    except BudgetRefused as error:
        raise ValueError(FORM) from error
    return Quota(*sizes)
