"""Room: who should leave, for whom, and until when nobody may.

Owns: the questions asked of `eviction.plan`: who may leave, what each costs, what each
tenant holds, who has just come. Must not: send anybody away, wait, or change anything:
the same question gives the same answer (`hotset explain` asks too).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic

from eviction.candidates import Candidate, Candidates
from eviction.ledger import Ledger
from eviction.plan import Plan, Share, own_need, plan
from eviction.policy import Policy
from eviction.spiral import Spiral
from loader.manifest import ModelSpec
from runtime.door import Want
from runtime.errors import NoRoom, OverQuota, Refused, Thrashing, TooLarge
from runtime.residency import M, Residency, Stage
from runtime.tenants import Tenants, leaving_of

WORTH_A_WAY_S = 0.25
"""A newcomer that would have to wait for less is not sent away, but waits."""


Reloads = Callable[
    [Sequence[ModelSpec], Sequence[int], Sequence[float]], Sequence[float]
]
"""What bringing so many bytes of each model back would take now, whose last load took
so many seconds. Of many at once: a decision asks it of all residents."""


def as_last_time(
    specs: Sequence[ModelSpec], nbytes: Sequence[int], load_s: Sequence[float]
) -> Sequence[float]:
    """Where nothing else is known."""
    return load_s


@dataclass(eq=False, slots=True)
class Room(Generic[M]):
    """The cache's books, asked for decisions."""

    policy: Policy
    ledger: Ledger
    residencies: Mapping[str, Residency[M]]
    tenants: Tenants
    spiral: Spiral
    reload_s: Reloads
    idle_ttl: float = 0.0
    leaving: int = field(default=0, init=False)
    """Bytes of those sent away that are not free yet."""
    price: float = field(default=0.0, init=False)
    """Of a byte, in seconds, by the last plan that was carried out."""

    def may_leave(self) -> list[Residency[M]]:
        """Resident, unused, not pinned."""
        return [
            life
            for life in self.residencies.values()
            if life.stage is Stage.READY and not life.leases and not life.spec.pin
        ]

    def shares(self) -> Mapping[str, Share]:
        """Of the configured tenants."""
        return self.tenants.shares(self.residencies, self.ledger)

    def shrink(self, overdraft: int, now: float) -> Plan:
        """Less capacity than we hold: leaving helps even where it does not suffice,
        and a floor is a promise between tenants, not one the device made."""
        candidates = self.candidates(self.may_leave())
        need = min(overdraft, sum(candidates.nbytes))
        found = plan(self.policy, candidates, need, now, shares=self.shares())
        return found if not found.short else plan(self.policy, candidates, need, now)

    def would_leave(self, spec: ModelSpec, need: int, now: float) -> Plan:
        """For `need` bytes for a model, besides those on their way out."""
        short = need - self.ledger.free - self.leaving
        if short <= 0:  # asked again while they leave: nobody has to be looked at
            return Plan()
        lives = self.may_leave()
        if self.spiral.turning:
            stays_until = self.spiral.stays_until
            lives = [v for v in lives if now >= stays_until(v.since, v.load_s)]
        return plan(
            self.policy,
            self.candidates(lives),
            short,
            now,
            shares=self.shares(),
            tenant=spec.tenant,
        )

    def make_own(self, want: Want, now: float) -> Plan:
        """What a tenant at its ceiling has to free of its own first."""
        tenant = self.residencies[want.key].spec.tenant
        short = own_need(self.shares(), tenant, want.need)
        short -= leaving_of(self.residencies.values(), self.ledger, tenant)
        own = [life for life in self.may_leave() if life.spec.tenant == tenant]
        return plan(self.policy, self.candidates(own), short, now)

    def barred(self, want: Want) -> bool:
        """Its tenant may not hold that much more yet."""
        if not self.tenants:
            return False
        tenant = self.residencies[want.key].spec.tenant
        return own_need(self.shares(), tenant, want.need) > 0

    def overdue(self, now: float) -> list[Residency[M]]:
        """Who has been idle for too long."""
        if not self.idle_ttl:
            return []
        return [life for life in self.may_leave() if self._idle_until(life) <= now]

    def look_again(self, now: float, waiting: bool) -> float | None:
        """When time alone will change an answer; None if it will not."""
        waiting = waiting and self.spiral.turning
        if not (self.idle_ttl or waiting):  # asked at every change: no look at all then
            return None
        times = []
        for life in self.may_leave():
            if self.idle_ttl:
                times.append(self._idle_until(life))
            if waiting:
                times.append(self.spiral.stays_until(life.since, life.load_s))
        return min((when for when in times if when > now), default=None)

    def refusal(
        self, spec: ModelSpec, need: int, budget: int, now: float
    ) -> Refused | None:
        """Why nobody should even begin to load it; None if somebody may."""
        if need > budget:
            return TooLarge(
                f"model '{spec.name}' needs {need} bytes, more than the whole budget "
                f"of {budget} bytes"
            )
        ceiling = self.tenants.ceiling(spec.tenant, self.ledger.capacity)
        if ceiling is not None and need > ceiling:
            return TooLarge(
                f"model '{spec.name}' needs {need} bytes, more than the ceiling of its "
                f"tenant '{spec.tenant}', {ceiling} bytes"
            )
        stay_away = self.cold(spec, need, now)
        if stay_away is None:
            return None
        return Thrashing(
            f"no room for model '{spec.name}' yet: models in demand are more than fit, "
            f"and this one is asked for least; try again in {stay_away:.1f} s",
            stay_away,
        )

    def none_for(self, spec: ModelSpec, patience: float) -> NoRoom:
        """What somebody hears who waited for as long as that."""
        ceiling = self.tenants.ceiling(spec.tenant, self.ledger.capacity)
        share = self.shares().get(spec.tenant)
        if ceiling is not None and share is not None and share.held >= ceiling // 2:
            return OverQuota(
                f"no room for model '{spec.name}' within {patience:g} s: its tenant "
                f"'{spec.tenant}' holds {share.held} of at most {ceiling} bytes, all "
                "of it in use or pinned",
                1.0,
            )
        theirs = "in use, pinned or promised to other tenants"
        return NoRoom(
            f"no room for model '{spec.name}' within {patience:g} s: all that is "
            f"resident is {theirs if self.tenants else 'in use or pinned'}",
            1.0,
        )

    def cold(self, spec: ModelSpec, nbytes: int, now: float) -> float | None:
        """While the cache spirals: how long a newcomer that is worth less than all it
        could push out should stay away. None: it may come."""
        if not self.spiral.turning or nbytes <= self.ledger.free:
            return None
        there = self.may_leave()
        ends = [self.spiral.stays_until(life.since, life.load_s) for life in there]
        stay_away = min(ends, default=now) - now
        if stay_away < WORTH_A_WAY_S:
            return None
        residents, itself = self.candidates(there), self.absent(spec, nbytes)
        *theirs, own = self.policy.density(  # one question: only then they compare
            [*residents.models, itself.model],
            now,
            [*residents.reload_s, itself.reload_s],
        )
        if own > min(theirs) or not self.spiral.send_away(spec.key):
            return None
        return stay_away

    def density(self, candidates: Candidates, now: float) -> Sequence[float]:
        """What each is worth, as the policy sees it now."""
        return self.policy.density(candidates.models, now, candidates.reload_s)

    def absent(self, spec: ModelSpec, nbytes: int) -> Candidate:
        """One that is not here, as if it were."""
        took = self.spiral.took(spec.key)
        (reload_s,) = self.reload_s((spec,), (nbytes,), (took,))
        return Candidate(spec.key, nbytes, reload_s)

    def _idle_until(self, life: Residency[M]) -> float:
        return max(life.last_use, life.since) + self.idle_ttl

    def candidate(self, life: Residency[M]) -> Candidate:
        """What a plan would know of this one."""
        return self.candidates((life,))[0]

    def candidates(self, lives: Sequence[Residency[M]]) -> Candidates:
        """What a plan has to know of these."""
        specs = [life.spec for life in lives]
        keys = [life.key for life in lives]
        load_s = [life.load_s for life in lives]
        nbytes = [*map(self.ledger.size, keys)]
        return Candidates(
            keys,
            nbytes,
            self.reload_s(specs, nbytes, load_s),
            [spec.priority for spec in specs],
            [spec.tenant for spec in specs],
            [life.since for life in lives],
            load_s,
        )
