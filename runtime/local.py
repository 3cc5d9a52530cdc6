"""The engine in this process: catalog, cache, batcher and lanes behind one seam.

    predict    catalog -> conform -> lease -> batch -> answer

Owns: the order of a predict, and that of a drain. Must not: know gRPC or HTTP, decide
what leaves (the cache's and the policy's business), or tell what is here
(runtime/inventory.py).
"""

import asyncio
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import TYPE_CHECKING

import structlog

from loader.errors import ArtifactRefused, LoadFailed, ModelNotFound
from loader.load import Model
from loader.manifest import ModelSpec
from runtime.batch import Batcher
from runtime.cache import ModelCache
from runtime.catalog import Catalog
from runtime.conformance import Fitted, Forms
from runtime.contents import Part, Parts
from runtime.engine import (
    Answer,
    IndexEntry,
    ModelStatistics,
    Request,
    Snapshot,
    Temperature,
)
from runtime.errors import BadRequest, Draining, Refused
from runtime.explanation import Explanation
from runtime.generations import Generations
from runtime.inventory import Inventory
from runtime.observer import Observer
from runtime.statistics import Statistics

if TYPE_CHECKING:  # imported where it is made: only who compiles needs a compiler
    from runtime.compiler import Compiler

log = structlog.get_logger()


class LocalEngine:
    """`runtime.engine.Engine` over a cache in the same process and event loop."""

    def __init__(
        self,
        catalog: Catalog,
        cache: ModelCache[Model],
        batcher: Batcher,
        observer: Observer,
        statistics: Statistics,
        inventory: Inventory[Model],
        generations: Generations[Model],
    ) -> None:
        self._catalog = catalog
        self._cache = cache
        self._batcher = batcher
        self._observer = observer
        self._statistics = statistics
        self._generations = generations
        self._forms = Forms()
        self.inventory = inventory
        """What is told of this engine to those who look from outside."""
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
            asked = self._forms.of(spec).fit(request)
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
        return self.inventory.index(ready_only)

    async def statistics(
        self, model: str = "", version: str = ""
    ) -> Sequence[ModelStatistics]:
        """Counters of one model, or of all met (empty name)."""
        return self.inventory.statistics(model, version)

    async def snapshot(self) -> Snapshot:
        """What is resident, and how it got there."""
        return self.inventory.snapshot()

    async def explain(self, model: str, version: str = "") -> Explanation:
        """Why it is here or not, who would leave for it; loads and evicts nothing."""
        return self.inventory.explain(await self._find(model, version))

    def known(self, key: str) -> ModelSpec | None:
        """What the catalog believes of a model that was met, by its key."""
        return self._catalog.of(key)

    async def drain(self) -> None:
        """Refuse new work, let leases end, cancel loads, free every byte."""
        first, self.ready = self.ready, False
        await self._cache.aclose()
        await self._catalog.aclose()
        await self._generations.over()
        held, peak = self._cache.ledger.held, self._cache.ledger.peak
        if first:
            log.info("drained", held=held, peak_held=peak)

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
