"""Which models exist, and from where we know.

    known      sync, no I/O: the hot path's question
    find       known, else one look into the store, shared by all who ask meanwhile

Owns: what was read of manifests, how long it is believed, and which names are known to
be unknown. Must not: list the store, load weights, or decide who may see what.

A manifest is believed for `ttl` seconds. After that it is still served while it is read
again behind the request's back: a store that is down must not take a resident model
down with it. A manifest that changed is handed to `replaced` before it is believed, so
that a new generation can be loaded before the old one is let go.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

import structlog
from cachetools import TTLCache

from loader.errors import ArtifactRefused, LoadFailed, ModelNotFound
from loader.manifest import ModelSpec, read_manifest
from loader.names import NAME_RULE, VERSION_RULE, valid_name, valid_version
from loader.store import Missing, Store
from runtime.errors import BadRequest, Draining

log = structlog.get_logger()

MANIFEST_LIMIT = 1 << 20
"""Bytes of a model.json at most; a manifest with 100 inputs has about 12 KiB."""
REMEMBERED = 65536
"""Manifests kept (about 2 KiB each), and unknown names kept."""
LOOK_BACK = 8
"""Versions without a model.json that may lie above the latest whole one."""

Name = tuple[str, str]
"""(model, version); an empty version stands for the latest."""


@dataclass(slots=True)
class Entry:
    """What was read, and when."""

    spec: ModelSpec
    read_at: float


async def accept(old: ModelSpec, new: ModelSpec) -> bool:
    """The default for `replaced`: believe the new manifest at once."""
    return True


def check_names(model: str, version: str = "") -> None:
    """BadRequest unless both may be looked for in a store (no path leaves it)."""
    if not valid_name(model):
        raise BadRequest(f"a model's name has {NAME_RULE}")
    if version and not valid_version(version):
        raise BadRequest(f"a model's version is {VERSION_RULE}")


class Catalog:
    """Manifests by name and version. One instance, one event loop."""

    def __init__(
        self,
        store: Store,
        ttl: float = 30.0,
        unknown_ttl: float = 5.0,
        replaced: Callable[[ModelSpec, ModelSpec], Awaitable[bool]] = accept,
    ) -> None:
        self._store = store
        self._ttl = ttl
        self._replaced = replaced
        self._clock = asyncio.get_running_loop().time
        # Renewed every `ttl` if asked for, so the first in line is one that nobody has
        # asked for lately; a look-up then need not keep an order.
        self._entries: dict[Name, Entry] = {}
        # Names and not errors: a raised error holds the frames, and with them the
        # message, of the call that met it.
        self._unknown: TTLCache[Name, Name] = TTLCache(
            REMEMBERED, unknown_ttl, timer=self._clock
        )
        self._flights: dict[Name, asyncio.Task[ModelSpec]] = {}

    def known(self, model: str, version: str = "") -> ModelSpec | None:
        """The manifest if we have it, stale or not; a stale one is read again."""
        name = (model, version)
        entry = self._entries.get(name)
        if entry is None:
            return None
        if self._clock() - entry.read_at > self._ttl and name not in self._flights:
            self._fly(name)
        return entry.spec

    async def find(self, model: str, version: str = "") -> ModelSpec:
        """The manifest. Raises ModelNotFound, ArtifactRefused, StoreUnreachable."""
        spec = self.known(model, version)
        if spec is not None:
            return spec
        name = (model, version)
        unknown = self._unknown.get(name)
        if unknown is not None:
            raise ModelNotFound(*unknown)
        flight = self._flights.get(name) or self._fly(name)
        # Not awaited directly: our cancellation must not end the others' look-up.
        await asyncio.wait((flight,))
        if flight.cancelled():
            raise Draining("the server is shutting down", 1.0)
        return flight.result()

    async def versions(self, model: str) -> Sequence[str]:
        """The versions in the store, ascending; ModelNotFound if there is none."""
        check_names(model)
        folders, objects = await self._store.children(f"{model}/")
        # A folder "007" is none of ours: it could not be asked for as 7.
        found = sorted({int(folder) for folder in folders if valid_version(folder)})
        if "model.json" in objects and 1 not in found:
            found.insert(0, 1)
        if not found:
            raise ModelNotFound(model)
        return [str(version) for version in sorted(found)]

    def of(self, key: str) -> ModelSpec | None:
        """The manifest of a model by its key, if it is the one believed now."""
        model, _, version = key.rpartition("@")[0].rpartition(":")
        for asked in ("", version):
            entry = self._entries.get((model, asked))
            if entry is not None and entry.spec.key == key:
                return entry.spec
        return None

    def doubt(self, spec: ModelSpec) -> None:
        """The store does not hold what this manifest says: read it anew next time."""
        for version in ("", spec.version):
            entry = self._entries.get((spec.name, version))
            if entry is not None and entry.spec.key == spec.key:
                del self._entries[(spec.name, version)]

    def specs(self) -> Sequence[ModelSpec]:
        """Every manifest read and still remembered."""
        return [entry.spec for entry in self._entries.values()]

    async def aclose(self) -> None:
        """End the readings under way."""
        for task in list(self._flights.values()):
            task.cancel()
        if self._flights:
            await asyncio.wait(list(self._flights.values()))

    def _fly(self, name: Name) -> "asyncio.Task[ModelSpec]":
        task = asyncio.get_running_loop().create_task(self._read(name))
        self._flights[name] = task
        task.add_done_callback(lambda ended: self._landed(name, ended))
        return task

    def _landed(self, name: Name, task: "asyncio.Task[ModelSpec]") -> None:
        del self._flights[name]
        if task.cancelled():
            return
        error = task.exception()
        if error is None:
            self._unknown.pop(name, None)
            self._entries.pop(name, None)
            self._entries[name] = Entry(task.result(), self._clock())
            if len(self._entries) > REMEMBERED:
                del self._entries[next(iter(self._entries))]
        elif isinstance(error, ModelNotFound):
            self._entries.pop(name, None)
            self._unknown[name] = error.model, error.version
        elif name in self._entries:
            # Served on from what we know; asked again after another ttl.
            self._entries[name].read_at = self._clock()
            reason = error.message if isinstance(error, LoadFailed) else repr(error)
            log.warning("manifest not read again", model=name[0], reason=reason)

    async def _read(self, name: Name) -> ModelSpec:
        model, version = name
        check_names(model, version)
        if version:
            spec = await self._manifest(model, version)
        else:
            spec = await self._latest(model)
        entry = self._entries.get(name)
        if entry is None or entry.spec.key == spec.key:
            return spec
        return spec if await self._replaced(entry.spec, spec) else entry.spec

    async def _latest(self, model: str) -> ModelSpec:
        """The highest version that is whole: an upload brings its files one by one, and
        until model.json is there the version before it goes on serving."""
        versions = await self.versions(model)
        for version in versions[: -LOOK_BACK - 1 : -1]:
            try:
                return await self._manifest(model, version)
            except ModelNotFound:
                continue
        raise ModelNotFound(model)

    async def _manifest(self, model: str, version: str) -> ModelSpec:
        folders = [f"{model}/{version}"]
        if version == "1":
            folders.append(model)
        for folder in folders:
            try:
                data = await self._store.small(f"{folder}/model.json", MANIFEST_LIMIT)
            except Missing:
                continue
            except ValueError as error:
                raise ArtifactRefused("model.json", str(error)) from error
            return replace(read_manifest(data, model, version), directory=folder)
        raise ModelNotFound(model, version)
