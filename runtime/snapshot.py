"""What the cache looks like from outside, at one moment.

Owns: the translation of residencies into the seam's vocabulary. Must not: change
anything.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from loader.manifest import ModelSpec
from loader.tier import Tiers
from runtime.cache import ModelCache
from runtime.engine import CompiledGraph, Kept, Resident, Snapshot, State, Temperature
from runtime.residency import M, Residency, Stage

STATES: Mapping[Stage, State] = {
    Stage.LOADING: "LOADING",
    Stage.READY: "READY",
    Stage.LEAVING: "UNLOADING",
    Stage.FAILED: "UNAVAILABLE",
    Stage.GONE: "UNAVAILABLE",
}


KEPT_SHOWN = 4096
"""A look is taken on the event loop: some 2 us for each model that was ever met."""

Below = Callable[[ModelSpec], Mapping[str, int]]


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
    met: Iterable[ModelSpec] = (),
    below: Below = lambda spec: {},
    compiled: Sequence[CompiledGraph] = (),
    note: Callable[[ModelSpec], str] = lambda spec: "",
) -> Snapshot:
    """The cache as it is now. `met`: the models known; `below`: the bytes of one in
    the tiers below the device."""
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
        loads=cache.arrivals.loads,
        evictions=cache.departures.evictions,
        failures=cache.arrivals.failed,
        tiers=tiers,
        price=cache.room.price,
        spiral=cache.spiral.turning,
        relapses=cache.spiral.relapses,
        deferred=cache.spiral.deferred,
        compiled=compiled,
        residents=[
            _resident(life, cache.ledger.size(key), device, now, below, note)
            for key, life in cache.residencies.items()
        ],
        kept=list(_kept(cache, met, below)) if tiers.below else [],
    )


def _kept(
    cache: ModelCache[M], met: Iterable[ModelSpec], below: Below
) -> Iterator[Kept]:
    """Of those met, who is not on the device but in a tier below it."""
    absent = {spec.key: spec for spec in met if spec.key not in cache.residencies}
    for spec in list(absent.values())[:KEPT_SHOWN]:
        found = below(spec)
        if found:
            yield Kept(spec.name, spec.version, found)


def _resident(
    life: Residency[M],
    nbytes: int,
    device: str,
    now: float,
    below: Below,
    note: Callable[[ModelSpec], str],
) -> Resident:
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
        below=below(life.spec),
        code=note(life.spec),
    )
