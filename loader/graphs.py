"""The shelf of graphs: each is fetched and read once, whoever shares it.

Owns: the graphs in memory by digest, one flight a digest. Must not: know weights.
"""

import asyncio
import hashlib
from concurrent.futures import Executor

import torch
from cachetools import LRUCache

from loader.errors import ArtifactRefused
from loader.graph import Graph, read_graph
from loader.linear import prefer_onednn
from loader.manifest import ModelSpec
from loader.onednn import OneDnn
from loader.spool import Spool
from loader.store import Missing, Store
from loader.threads import to_its_end


class GraphShelf:
    """At most `capacity` graphs that no resident model uses; those in use live on.

    `onednn`: where their large linear layers run, if not as torch has them.
    """

    def __init__(
        self,
        store: Store,
        device: torch.device,
        executor: Executor,
        capacity: int = 256,
        spool: Spool | None = None,
        onednn: OneDnn | None = None,
    ) -> None:
        self._store = store
        self._device = device
        self._executor = executor
        self._spool = spool
        self._onednn = onednn
        self._read: LRUCache[str, Graph] = LRUCache(capacity)
        self._coming: dict[str, asyncio.Task[Graph]] = {}

    def known(self, spec: ModelSpec) -> Graph | None:
        """The graph of a model, if it was read before: nearly always."""
        return self._read.get(spec.graph.sha256)

    async def get(self, spec: ModelSpec) -> Graph:
        """The graph of a model. Raises ArtifactRefused, StoreUnreachable."""
        digest = spec.graph.sha256
        graph = self.known(spec)
        if graph is not None:
            return graph
        task = self._coming.get(digest)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._bring(spec))
            self._coming[digest] = task
            task.add_done_callback(lambda t: self._put(digest, t))
        # shield: the first to ask may leave; the others still want the graph.
        return await asyncio.shield(task)

    async def _bring(self, spec: ModelSpec) -> Graph:
        data = await self.text(spec)
        return await to_its_end(self._executor, self._made, data)

    def _made(self, data: bytes) -> Graph:
        return prefer_onednn(read_graph(data, self._device), self._onednn)

    async def text(self, spec: ModelSpec) -> bytes:
        """The graph's file, its digest checked; it is not kept in memory. Raises
        ArtifactRefused, StoreUnreachable."""
        data = await self._from_disk(spec)
        return data or await self._from_store(spec, spec.graph.name)

    async def _from_disk(self, spec: ModelSpec) -> bytes | None:
        spool, file = self._spool, spec.graph
        if spool is None:
            return None
        data = await to_its_end(self._executor, spool.read, file.sha256, file.size)
        if data is None or hashlib.sha256(data).hexdigest() == file.sha256:
            return data
        await to_its_end(self._executor, spool.discard, file.sha256)
        return None

    async def _from_store(self, spec: ModelSpec, place: str) -> bytes:
        try:
            data = await self._store.small(f"{spec.directory}/{place}")
        except Missing as error:
            raise ArtifactRefused(place, "is missing from the store") from error
        except ValueError as error:
            raise ArtifactRefused(place, str(error)) from error
        if hashlib.sha256(data).hexdigest() != spec.graph.sha256:
            raise ArtifactRefused(place, "its SHA-256 is not the one in model.json")
        if self._spool is not None and self._spool.wants(spec.graph.sha256, len(data)):
            self._spool.put(spec.graph.sha256, [memoryview(data)])
        return data

    def _put(self, digest: str, task: asyncio.Task[Graph]) -> None:
        del self._coming[digest]
        if not task.cancelled() and task.exception() is None:
            self._read[digest] = task.result()

    async def aclose(self) -> None:
        """Wait for what is under way."""
        for task in list(self._coming.values()):
            task.cancel()
        if self._coming:
            await asyncio.wait(self._coming.values())
