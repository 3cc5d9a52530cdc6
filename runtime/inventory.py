"""The inventory: what is here, for those who look at it from outside.

    index        the models met, each with its state
    statistics   what each was asked for, and the bytes it holds of each tier
    snapshot     the whole cache at one moment
    explain      one model, and why it is here or is not

Owns: the translation of residencies into the seam's vocabulary, and what the gauge last
said. Must not: change anything, or wait: all of it is true of one moment.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Generic

from loader.errors import LoadFailed
from loader.manifest import ModelSpec
from loader.tier import Tiers
from runtime.cache import ModelCache
from runtime.catalog import Catalog
from runtime.engine import (
    CompiledGraph,
    IndexEntry,
    Kept,
    ModelStatistics,
    Resident,
    Snapshot,
    State,
)
from runtime.explain import explain
from runtime.explanation import Explanation
from runtime.residency import M, Residency, Stage
from runtime.statistics import Statistics

STATES: Mapping[Stage, State] = {
    Stage.LOADING: "LOADING",
    Stage.READY: "READY",
    Stage.LEAVING: "UNLOADING",
    Stage.FAILED: "UNAVAILABLE",
    Stage.GONE: "UNAVAILABLE",
}

KEPT_SHOWN = 4096
"""A look is taken on the event loop: some 2 us for each model that was ever met."""


class Inventory(Generic[M]):
    """Of one engine. Whoever knows sets what is told here."""

    def __init__(
        self,
        catalog: Catalog,
        cache: ModelCache[M],
        statistics: Statistics,
        device: str,
        policy: str,
    ) -> None:
        self._catalog = catalog
        self._cache = cache
        self._statistics = statistics
        self._device = device
        self._policy = policy
        self._began = cache.clock()
        self.measured: int | None = None
        """Device bytes in use, all processes, as the gauge read them last."""
        self.gauge_up = True
        """False while that is an estimate."""
        self.tiers: Callable[[], Tiers] = Tiers
        self.bytes_below: Callable[[ModelSpec], Mapping[str, int]] = lambda spec: {}
        """What the loader tells of the tiers (loader/load.py)."""
        self.compiled: Callable[[], Sequence[CompiledGraph]] = list
        self.note: Callable[[ModelSpec], str] = lambda spec: ""
        """What the compiler tells of graphs, and of a model's."""
        self.onednn_from = 0
        """Which linear layers run in oneDNN (runtime/kernels.py)."""

    def index(self, ready_only: bool = False) -> Sequence[IndexEntry]:
        """Models this server has met (never a listing of the whole store)."""
        entries = {
            (spec.name, spec.version): IndexEntry(
                spec.name, spec.version, "UNAVAILABLE", "not resident; loads on request"
            )
            for spec in self._catalog.specs()
        }
        for life in [*self._cache.failures.lives(), *self._cache.residencies.values()]:
            name, version = life.spec.name, life.spec.version
            reason = ""
            if life.failure is not None:
                known = isinstance(life.failure, LoadFailed)
                reason = str(life.failure) if known else "internal error"
            entries[name, version] = IndexEntry(
                name, version, STATES[life.stage], reason
            )
        chosen = (e for e in entries.values() if not ready_only or e.state == "READY")
        return sorted(chosen, key=lambda e: (e.name, e.version))

    def statistics(self, model: str = "", version: str = "") -> list[ModelStatistics]:
        """Counters of one model, or of all met (empty name)."""
        held = self._held(model)
        return [
            tally.read(held.get((tally.name, tally.version), {self._device: 0}))
            for tally in self._statistics.all()
            if model in ("", tally.name) and version in ("", tally.version)
        ]

    def _held(self, model: str) -> Mapping[tuple[str, str], dict[str, int]]:
        """Bytes by tier of each version of a model, or of all models met."""
        held = {
            (spec.name, spec.version): {self._device: 0, **self.bytes_below(spec)}
            for spec in self._catalog.specs()
            if model in ("", spec.name)
        }
        for life in self._cache.residencies.values():
            if life.model is not None:
                name = (life.spec.name, life.spec.version)
                here = held.setdefault(name, {self._device: 0})
                here[self._device] += life.model.nbytes
        return held

    def snapshot(self) -> Snapshot:
        """The cache as it is now."""
        cache, tiers = self._cache, self.tiers()
        now = cache.clock()
        return Snapshot(
            device=self._device,
            policy=self._policy,
            capacity=cache.ledger.capacity,
            held=cache.ledger.held,
            peak_held=cache.ledger.peak,
            measured=self.measured,
            gauge_up=self.gauge_up,
            waiting=cache.waiting,
            uptime_s=now - self._began,
            requests=dict(self._statistics.temperatures),
            loads=cache.arrivals.loads,
            evictions=cache.departures.evictions,
            failures=cache.arrivals.failed,
            tiers=tiers,
            price=cache.room.price,
            spiral=cache.spiral.turning,
            relapses=cache.spiral.relapses,
            deferred=cache.spiral.deferred,
            compiled=self.compiled(),
            onednn_from=self.onednn_from,
            residents=[
                self._resident(life, now) for life in cache.residencies.values()
            ],
            kept=list(self._kept()) if tiers.below else [],
        )

    def _kept(self) -> Iterator[Kept]:
        """Of those met, who is not on the device but in a tier below it."""
        here, met = self._cache.residencies, self._catalog.specs()
        absent = {spec.key: spec for spec in met if spec.key not in here}
        for spec in list(absent.values())[:KEPT_SHOWN]:
            found = self.bytes_below(spec)
            if found:
                yield Kept(spec.name, spec.version, found)

    def _resident(self, life: Residency[M], now: float) -> Resident:
        return Resident(
            name=life.spec.name,
            version=life.spec.version,
            state=STATES[life.stage],
            nbytes=self._cache.ledger.size(life.key),
            tier=self._device,
            leases=life.leases,
            uses=life.uses,
            idle_s=max(0.0, now - life.last_use) if life.uses else now - life.since,
            pinned=life.spec.pin,
            below=self.bytes_below(life.spec),
            code=self.note(life.spec),
        )

    def explain(self, spec: ModelSpec) -> Explanation:
        """Why it is here or not, who would leave for it."""
        return explain(self._cache, spec, self._policy)
