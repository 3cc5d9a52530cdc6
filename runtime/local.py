"""The engine in this process: catalog, cache, batcher and lanes behind one seam.

    predict    catalog -> conform -> lease -> batch -> answer

Owns: the order of a predict, and what a snapshot says. Must not: know gRPC or HTTP, or
decide what leaves (the cache's and the policy's business).
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from time import perf_counter
from typing import TYPE_CHECKING

import structlog
import torch

from loader.errors import ArtifactRefused, LoadFailed, ModelNotFound
from loader.load import Model
from loader.manifest import ModelSpec
from loader.tier import Tiers
from runtime.batch import Batcher
from runtime.cache import ModelCache
from runtime.catalog import Catalog
from runtime.conformance import Fitted, Form
from runtime.contents import Part, Parts
from runtime.engine import (
    Answer,
    IndexEntry,
    ModelStatistics,
    Request,
    Snapshot,
    Temperature,
)
from runtime.errors import BadRequest, Draining, NoRoom, Refused, TooLarge
from runtime.explain import explain
from runtime.explanation import Explanation
from runtime.observer import Observer
from runtime.snapshot import STATES, look
from runtime.statistics import Statistics

if TYPE_CHECKING:  # imported where it is made: only who compiles needs a compiler
    from runtime.compiler import Compiler

log = structlog.get_logger()

FORMS = 8192
"""Models whose form is remembered; working one out takes microseconds."""


class LocalEngine:
    """`runtime.engine.Engine` over a cache in the same process and event loop."""

    def __init__(
        self,
        catalog: Catalog,
        cache: ModelCache[Model],
        batcher: Batcher,
        observer: Observer,
        statistics: Statistics,
        device: torch.device,
        policy: str,
    ) -> None:
        self._catalog = catalog
        self._cache = cache
        self._batcher = batcher
        self._observer = observer
        self._statistics = statistics
        self._device = device
        self._policy = policy
        self._clock = asyncio.get_running_loop().time
        self._began = self._clock()
        self._forms: dict[str, Form] = {}
        self._retiring: set[asyncio.Task[None]] = set()
        self.measured: int | None = None
        """Device bytes in use, all processes, as the gauge read them last."""
        self.gauge_up = True
        """False while that is an estimate."""
        self.tiers: Callable[[], Tiers] = Tiers
        self.bytes_below: Callable[[ModelSpec], Mapping[str, int]] = lambda spec: {}
        """What the loader tells of the tiers (loader/load.py)."""
        self.compiler: Compiler | None = None
        """Where graphs are compiled; None: all run eagerly."""
        self.longest_forward: Callable[[], float] = lambda: 0.0
        """Seconds that the oldest forward has been running (runtime/lanes.py)."""
        self.ready = True

    async def predict(self, request: Request, again: bool = False) -> Answer:
        """Lease the model (loading it if need be), run it, give the outputs.

        `again`: the manifest is fresh; what the store refuses now is really refused.
        """
        began = perf_counter()
        spec = self._catalog.known(request.model, request.version)
        asked: Fitted | None = None
        try:
            if spec is None:
                spec = await self._find(request.model, request.version)
            asked = self._form(spec).fit(request)
            parts, temperature = await self._run(spec, asked, request.deadline)
        except Exception as error:
            if not again and spec is not None and await self._outdated(spec, error):
                return await self.predict(request, again=True)
            if spec is not None:
                self._statistics.of(spec).fail.add(perf_counter() - began)
            known = "" if spec is None else spec.name
            self._observer.refused(known, type(error).__name__)
            raise
        seconds = perf_counter() - began
        self._statistics.answered(self._statistics.of(spec), temperature, seconds)
        self._observer.answered(spec.name, temperature, seconds, asked.rows)
        outputs = _chosen(spec, parts, request.outputs)
        return Answer(spec.name, spec.version, Parts(outputs), temperature)

    async def _run(
        self, spec: ModelSpec, asked: Fitted, deadline: float | None
    ) -> tuple[list[Part], Temperature]:
        """The outputs, and how the model was met. Resident: no wait but the batch's."""
        life = self._cache.taken(spec.key)
        if life is None:
            lease = self._cache.lease(spec, deadline)
            async with lease as model:
                return await self._batcher.run(
                    model, asked, deadline
                ), lease.temperature
        assert life.model is not None
        try:
            return await self._batcher.run(life.model, asked, deadline), "hit"
        finally:
            self._cache.give_back(life)

    def _form(self, spec: ModelSpec) -> Form:
        """What its requests must look like; worked out once."""
        form = self._forms.get(spec.key)
        if form is None:
            if len(self._forms) >= FORMS:
                del self._forms[next(iter(self._forms))]
            form = self._forms[spec.key] = Form(spec)
        return form

    async def describe(self, model: str, version: str = "") -> ModelSpec:
        """The manifest, from the store if not known yet; loads nothing."""
        return await self._find(model, version)

    async def versions(self, model: str) -> Sequence[str]:
        """Versions of a model in the store, ascending; ModelNotFound if none."""
        return await self._catalog.versions(model)

    async def servable(self, model: str, version: str = "") -> bool:
        """True if a predict would be tried: resident, or in the store, not failed."""
        if not self.ready:
            return False
        try:
            spec = await self._find(model, version)
        except (ModelNotFound, ArtifactRefused, BadRequest):
            return False
        return spec.key not in self._cache.failures

    async def load(
        self,
        model: str,
        version: str = "",
        deadline: float | None = None,
        urgent: bool = True,
    ) -> None:
        """Make resident now; returns when it is. Not `urgent`: requests go first."""
        spec = await self._find(model, version)
        try:
            async with self._cache.lease(spec, deadline, urgent):
                return
        except ArtifactRefused as error:
            if not await self._outdated(spec, error):
                raise
        fresh = await self._find(model, version)
        async with self._cache.lease(fresh, deadline, urgent):
            pass

    async def unload(self, model: str, version: str = "") -> None:
        """Make absent; returns when its bytes are free. Unknown models are a no-op."""
        lives = [*self._cache.residencies.values(), *self._cache.failures.lives()]
        keys = [
            life.spec.key
            for life in lives
            if life.spec.name == model and version in ("", life.spec.version)
        ]
        await asyncio.gather(*(self._cache.unload(key) for key in keys))

    async def index(self, ready_only: bool = False) -> Sequence[IndexEntry]:
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

    async def statistics(
        self, model: str = "", version: str = ""
    ) -> Sequence[ModelStatistics]:
        """Counters of one model, or of all met (empty name)."""
        held = self._held(model)
        return [
            tally.read(held.get((tally.name, tally.version), {str(self._device): 0}))
            for tally in self._statistics.all()
            if model in ("", tally.name) and version in ("", tally.version)
        ]

    def _held(self, model: str) -> Mapping[tuple[str, str], dict[str, int]]:
        """Bytes by tier of each version of a model, or of all models met."""
        device = str(self._device)
        held = {
            (spec.name, spec.version): {device: 0, **self.bytes_below(spec)}
            for spec in self._catalog.specs()
            if model in ("", spec.name)
        }
        for life in self._cache.residencies.values():
            if life.model is not None:
                name = (life.spec.name, life.spec.version)
                held.setdefault(name, {device: 0})[device] += life.model.nbytes
        return held

    async def snapshot(self) -> Snapshot:
        """What is resident, and how it got there."""
        return look(
            self._cache,
            device=str(self._device),
            policy=self._policy,
            measured=self.measured,
            gauge_up=self.gauge_up,
            requests=self._statistics.temperatures,
            uptime_s=self._clock() - self._began,
            tiers=self.tiers(),
            met=self._catalog.specs(),
            below=self.bytes_below,
            compiled=[] if self.compiler is None else self.compiler.status(),
            note=lambda spec: "" if self.compiler is None else self.compiler.note(spec),
        )

    async def explain(self, model: str, version: str = "") -> Explanation:
        """Why it is here or not, who would leave for it; loads and evicts nothing."""
        return explain(self._cache, await self._find(model, version), self._policy)

    def known(self, key: str) -> ModelSpec | None:
        """What the catalog believes of a model that was met, by its key."""
        return self._catalog.of(key)

    async def drain(self) -> None:
        """Refuse new work, let leases end, cancel loads, free every byte."""
        first, self.ready = self.ready, False
        await self._cache.aclose()
        await self._catalog.aclose()
        if self._retiring:
            await asyncio.wait(self._retiring)
        held, peak = self._cache.ledger.held, self._cache.ledger.peak
        if first:
            log.info("drained", held=held, peak_held=peak)

    async def replaced(self, old: ModelSpec, new: ModelSpec) -> bool:
        """A manifest changed in the store: bring the new generation in before the old
        one is let go, so that a broken upload never takes a serving model down. False:
        stay with the old one. (`runtime.catalog.Catalog` asks.)"""
        if old.key not in self._cache.residencies:
            return True
        try:
            async with self._cache.lease(new):
                pass
        except (NoRoom, TooLarge):
            await self._cache.unload(old.key)  # both at once do not fit: old one first
            return True
        except (LoadFailed, Refused) as error:
            log.warning("new generation refused", model=new.name, reason=error.message)
            return False
        task = asyncio.get_running_loop().create_task(self._cache.unload(old.key))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)
        return True

    def ran(
        self, model: Model, waits: Sequence[float], rows: int, seconds: float
    ) -> None:
        """A call ended (`runtime.batch.Batcher` tells)."""
        spec = model.spec
        tally = self._statistics.of(spec)
        tally.queue.add(sum(waits), len(waits))
        tally.compute.add(seconds)
        self._observer.queued(spec.name, waits)
        self._observer.computed(spec.name, seconds, rows, len(waits))
        if self.compiler is not None:
            self.compiler.ran(model, seconds)

    async def _outdated(self, spec: ModelSpec, error: Exception) -> bool:
        """True if the store was written to after its manifest was read: what did not
        fit the old one may well fit the new."""
        if not isinstance(error, ArtifactRefused):
            return False
        self._catalog.doubt(spec)
        try:
            fresh = await self._catalog.find(spec.name, spec.version)
        except (LoadFailed, Refused):
            return False
        return fresh.key != spec.key

    async def _find(self, model: str, version: str) -> ModelSpec:
        if not self.ready:
            raise Draining("the server is shutting down", 1.0)
        return await self._catalog.find(model, version)


def _chosen(
    spec: ModelSpec, parts: Sequence[Part], wanted: Sequence[str]
) -> list[tuple[str, Part]]:
    named = [(out.name, part) for out, part in zip(spec.outputs, parts, strict=True)]
    if not wanted:
        return named
    return [pair for pair in named if pair[0] in wanted]
