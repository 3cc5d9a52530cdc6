"""The loader: from a manifest to a model in device memory, and out again.

    size       an upper bound from model.json alone, no I/O: what the ledger books
    load       graph (shared) beside the weights: fetch -> verify -> copy, then bind
    unload     the last references go, and the bytes with them

Owns: the order of these steps, and that whatever goes wrong, a cancellation too, leaves
nothing behind. Must not: know budgets, leases or requests.
"""

import asyncio
import hashlib
import time
from collections import deque
from collections.abc import AsyncGenerator, Mapping
from concurrent.futures import Executor
from contextlib import aclosing

import torch

from loader.errors import ArtifactRefused, StoreUnreachable
from loader.graph import Graph
from loader.graphs import GraphShelf
from loader.header import Layout, read_header
from loader.manifest import ModelSpec
from loader.memory import DeviceMemory
from loader.store import Changed, Chunk, Missing, Store
from loader.threads import to_its_end
from loader.weights import Placing, bind, placing, pour

CHUNK = 8 << 20
"""Bytes a range: one GET brings most small models whole (loading facts, 4d)."""

PARALLEL = 8
"""Ranges of one model under way at once."""


class Model:
    """A model in device memory. `forward(inputs)` runs it; `nbytes` is exact."""

    __slots__ = ("device", "graph", "nbytes", "phases", "spec", "weights")

    def __init__(
        self,
        spec: ModelSpec,
        graph: Graph,
        weights: tuple[torch.Tensor, ...],
        nbytes: int,
        device: torch.device,
        phases: Mapping[str, float],
    ) -> None:
        self.device = device
        self.spec = spec
        self.graph = graph
        self.weights = weights
        self.nbytes = nbytes
        self.phases = phases

    def forward(self, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """Outputs in the manifest's order. Inputs on the model's device."""
        return self.graph.forward(*self.weights, *inputs)


class Loader:
    """Brings models in from a store and takes them out. Bounds: seconds a load."""

    def __init__(
        self,
        store: Store,
        shelf: GraphShelf,
        memory: DeviceMemory,
        executor: Executor,
        timeout: float = 120.0,
    ) -> None:
        self._store = store
        self._shelf = shelf
        self._memory = memory
        self._executor = executor
        self._timeout = timeout

    def size(self, spec: ModelSpec) -> int:
        """The file's size, never less than the buffer's (why: loader/weights.py)."""
        return spec.weights.size

    async def load(self, spec: ModelSpec) -> Model:
        """The model, checked byte by byte, or one of `loader.errors`.

        Whatever it raises, CancelledError too, nothing is held when it does.
        """
        try:
            async with asyncio.timeout(self._timeout):
                return await self._load(spec)
        except TimeoutError as error:
            raise StoreUnreachable(
                f"loading model '{spec.name}' took longer than {self._timeout:g} s"
            ) from error

    async def unload(self, model: Model) -> None:
        """Drop the last references. Its leases have ended: nobody runs it."""
        model.weights = ()

    async def _load(self, spec: ModelSpec) -> Model:
        graph_task = asyncio.get_running_loop().create_task(self._shelf.get(spec))
        pouring = Pouring(spec, self._memory)
        try:
            await self._pour(spec, pouring)
            graph = await graph_task
            graph.check(spec)
            weights = pouring.bind(graph)
        except BaseException:
            # The error's traceback holds this frame for as long as somebody remembers
            # the error; it must not hold the buffer as well.
            pouring.drop()
            raise
        finally:
            graph_task.cancel()  # a no-op when it is done
        return Model(
            spec, graph, weights, pouring.nbytes, self._memory.device, pouring.seconds
        )

    async def _pour(self, spec: ModelSpec, pouring: "Pouring") -> None:
        """Fetch the weights file range by range into the buffer, hashing it."""
        began = time.perf_counter()
        async with aclosing(self._ranges(spec)) as ranges:
            async for start, data in ranges:
                await to_its_end(self._executor, pouring.take, start, data)
        pouring.close(time.perf_counter() - began)

    async def _ranges(
        self, spec: ModelSpec
    ) -> AsyncGenerator[tuple[int, memoryview], None]:
        """The file's ranges in order, PARALLEL of them under way at once.

        The first says the size and the ETag; all others are asked for under that ETag,
        so that no file is ever put together from two.
        """
        size = spec.weights.size
        first = await self._range(spec, 0, None)
        if first.size != size:
            raise ArtifactRefused(
                spec.weights.name,
                f"has {first.size} bytes, model.json says {size}",
            )
        loop = asyncio.get_running_loop()
        starts = deque(range(CHUNK, size, CHUNK))
        window: deque[tuple[int, asyncio.Task[Chunk]]] = deque()
        start, chunk = 0, first
        try:
            while True:
                while starts and len(window) < PARALLEL:
                    at = starts.popleft()
                    fetch = self._range(spec, at, first.etag)
                    window.append((at, loop.create_task(fetch)))
                yield start, memoryview(chunk.data)
                if not window:
                    return
                start, task = window[0]
                chunk = await task
                window.popleft()
        finally:
            for _, task in window:
                task.cancel()
            if window:
                await asyncio.gather(*(t for _, t in window), return_exceptions=True)

    async def _range(self, spec: ModelSpec, start: int, etag: str | None) -> Chunk:
        end = min(start + CHUNK, spec.weights.size)
        try:
            chunk = await self._store.chunk(
                f"{spec.directory}/{spec.weights.name}", start, end, etag
            )
        except Missing as error:
            raise ArtifactRefused(
                spec.weights.name, "is missing from the store"
            ) from error
        except Changed as error:
            raise StoreUnreachable(
                f"model '{spec.name}' changed in the store while it was read"
            ) from error
        if len(chunk.data) != end - start and chunk.size == spec.weights.size:
            raise StoreUnreachable(
                f"the model store sent {len(chunk.data)} bytes of model "
                f"'{spec.name}' where {end - start} were asked for"
            )
        return chunk


class Pouring:
    """A weights file on its way into its buffer. `take` runs in a loader thread."""

    def __init__(self, spec: ModelSpec, memory: DeviceMemory) -> None:
        self._spec = spec
        self._memory = memory
        self._digest = hashlib.sha256()
        self._plan: tuple[Layout, Placing] | None = None
        self._buffer: torch.Tensor | None = None
        self.nbytes = 0
        self.seconds = {"fetch": 0.0, "verify": 0.0, "copy": 0.0}

    def take(self, start: int, data: memoryview) -> None:
        """The next bytes of the file, in order, from file offset `start`."""
        began = time.perf_counter()
        self._digest.update(data)
        hashed = time.perf_counter()
        if self._plan is None:
            # A header that is not whole in the first range is refused in there.
            layout = read_header(data, self._spec.weights.size)
            self._plan = layout, placing(layout)
            self.nbytes = self._plan[1].nbytes
            self._buffer = self._memory.take(self.nbytes)
        layout, plan = self._plan
        assert self._buffer is not None
        for to, piece in pour(plan.runs, start - layout.data_start, data):
            self._memory.write(self._buffer, to, piece)
        self.seconds["verify"] += hashed - began
        self.seconds["copy"] += time.perf_counter() - hashed

    def close(self, total: float) -> None:
        """All bytes are there: check the digest before anybody may use them."""
        if self._digest.hexdigest() != self._spec.weights.sha256:
            raise ArtifactRefused(
                self._spec.weights.name, "its SHA-256 is not the one in model.json"
            )
        spent = self.seconds["verify"] + self.seconds["copy"]
        self.seconds["fetch"] = max(0.0, total - spent)

    def bind(self, graph: Graph) -> tuple[torch.Tensor, ...]:
        """The graph's weights as views into the buffer, which they keep alive."""
        assert self._plan is not None
        assert self._buffer is not None
        weights = bind(*self._plan, graph.weights, self._buffer)
        self._buffer = None
        return weights

    def drop(self) -> None:
        """Let go of the buffer."""
        self._buffer = None
