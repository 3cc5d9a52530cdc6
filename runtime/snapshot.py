"""What the cache looks like from outside, at one moment.

Owns: the translation of residencies into the seam's vocabulary. Must not: change
anything.
"""

from collections.abc import Mapping

from loader.tier import Tiers
from runtime.cache import ModelCache
from runtime.engine import Resident, Snapshot, State, Temperature
from runtime.residency import M, Residency, Stage

STATES: Mapping[Stage, State] = {
    Stage.LOADING: "LOADING",
    Stage.READY: "READY",
    Stage.LEAVING: "UNLOADING",
    Stage.FAILED: "UNAVAILABLE",
    Stage.GONE: "UNAVAILABLE",
}


def look(
    cache: ModelCache[M],
    *,
    device: str,
    policy: str,
    measured: int | None,
    gauge_up: bool,
    requests: Mapping[Temperature, int],
    uptime_s: float,
    tiers: Tiers,
) -> Snapshot:
    """The cache as it is now."""
    now = cache.clock()
    return Snapshot(
        device=device,
        policy=policy,
        capacity=cache.ledger.capacity,
        held=cache.ledger.held,
        peak_held=cache.ledger.peak,
        measured=measured,
        gauge_up=gauge_up,
        waiting=cache.waiting,
        uptime_s=uptime_s,
        requests=dict(requests),
        loads=cache.loads,
        evictions=cache.evictions,
        failures=cache.failed_loads,
        tiers=tiers,
        residents=[
            _resident(life, cache.ledger.size(key), device, now)
            for key, life in cache.residencies.items()
        ],
    )


def _resident(life: Residency[M], nbytes: int, device: str, now: float) -> Resident:
    return Resident(
        name=life.spec.name,
        version=life.spec.version,
        state=STATES[life.stage],
        nbytes=nbytes,
        tier=device,
        leases=life.leases,
        uses=life.uses,
        idle_s=max(0.0, now - life.last_use) if life.uses else now - life.since,
        pinned=life.spec.pin,
    )
