"""Compiling graphs behind the requests' backs (`--compile auto`).

    told of every call -> the graph that cost most -> a process of its own compiles and
    tries it -> its library is loaded, and runs for every model of the graph

Owns: which graph is next, one at a time; what became of each; putting the code in the
eager graph's place and taking it out again. Must not: compile, or trust what it loads
further than its terms (loader/compiled.py). All state is the event loop's.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path

import structlog
from cachetools import LRUCache

from loader.code_cache import CodeCache
from loader.compile_job import MAX_WEIGHTS, Result, job_inputs, write_job
from loader.compiled import Code, Compiled, Library, Terms
from loader.errors import LoadFailed
from loader.graph import Graph
from loader.manifest import ModelSpec
from loader.model import Model
from loader.threads import to_its_end
from runtime.compile_process import compiled_apart, job_folder
from runtime.datatypes import TORCH
from runtime.engine import SHOWN, CodeState, CompiledGraph
from runtime.errors import Refused

log = structlog.get_logger()

KEPT = 4096
"""Graphs whose cost is remembered."""

MOST = 256
"""Libraries loaded at most: they are never unloaded."""

PATIENCE_S = 5.0
"""How long the model whose weights are tried may take to come back, had it left."""

Lease = Callable[[ModelSpec, float], AbstractAsyncContextManager[Model]]
Worker = Callable[[Path, Path], Awaitable[Result]]


@dataclass(eq=False, slots=True)
class Case:
    """What is known of one graph. `spent`: seconds in eager forwards."""

    digest: str
    spec: ModelSpec
    state: CodeState = "eager"
    spent: float = 0.0
    seconds: float = 0.0
    result: Result = field(default_factory=Result)
    code: Compiled | None = None

    def told(self) -> CompiledGraph:
        """For the status."""
        return CompiledGraph(
            self.digest[:SHOWN],
            self.state,
            self.result.reason,
            self.result.speedup,
            self.result.cached,
            self.seconds,
            0 if self.code is None else self.code.calls,
            0 if self.code is None else self.code.declined,
        )


class Compiler:
    """`after`: seconds a graph must have cost. `onednn_from`: multiplications
    from which their layers run in oneDNN otherwise. `graph_bytes` and `lease` are the
    loader's and the cache's; `worker` compiles, `opened` loads what it made."""

    def __init__(
        self,
        cache: CodeCache,
        executor: Executor,
        graph_bytes: Callable[[ModelSpec], Awaitable[bytes]],
        lease: Lease,
        after: float,
        lanes: int,
        onednn_from: int = 0,
        worker: Worker = compiled_apart,
        opened: Callable[[Path, int, Terms, int], Code] = Library,
    ) -> None:
        self._cache = cache
        self._executor = executor
        self._graph_bytes = graph_bytes
        self._lease = lease
        self._after = after
        self._lanes = lanes
        self._onednn_from = onednn_from
        self._worker = worker
        self._opened = opened
        self._cases: LRUCache[str, Case] = LRUCache(KEPT)
        self._loaded = 0
        self._task: asyncio.Task[None] | None = None
        self._closing = False

    def ran(self, model: Model, seconds: float) -> None:
        """A call ended. On the way of every request: two look-ups, as a rule."""
        graph = model.graph
        case = self._cases.get(graph.digest)
        if case is None:
            case = self._cases[graph.digest] = Case(graph.digest, model.spec)
        if case.code is not None:
            self._keep_in_place(case, graph)
        elif case.state == "eager":
            case.spent += seconds
            case.spec = model.spec
            if case.spent >= self._after and self._task is None:
                self._begin()

    def _keep_in_place(self, case: Case, graph: Graph) -> None:
        """A graph read anew runs the code too; code that failed runs no more."""
        code = case.code
        if code is None:
            raise AssertionError("A graph without code was told to keep it. A bug.")
        if code.failure and case.state == "compiled":
            case.state = "retired"
            case.result = Result(case.result.key, code.failure)
            log.warning(
                "compiled graph retired", graph=case.digest[:SHOWN], reason=code.failure
            )
        wanted = code if case.state == "compiled" else graph.eager
        if graph.forward is not wanted:
            graph.forward = wanted

    def status(self) -> list[CompiledGraph]:
        """Every graph that was compiled, or that somebody tried to."""
        return [c.told() for c in self._cases.values() if c.state != "eager"]

    def note(self, spec: ModelSpec) -> str:
        """How a model is run, for a listing; empty if nobody tried to compile it."""
        case = self._cases.get(spec.graph.sha256)
        if case is None or case.state == "eager":
            return ""
        if case.state == "compiled":
            return f"compiled, {case.result.speedup:.1f}x"
        return ": ".join(filter(None, (case.state, case.result.reason)))

    # -- one graph at a time ----------------------------------------------------------

    def _begin(self) -> None:
        if self._closing or self._loaded >= MOST:
            return
        ready = [c for c in self._cases.values() if c.state == "eager"]
        case = max(ready, key=lambda c: c.spent)
        case.state = "compiling"
        self._task = asyncio.get_running_loop().create_task(self._settle(case))

    async def _settle(self, case: Case) -> None:
        """Compile one graph; whatever happens, it is in a state to be shown."""
        began = time.perf_counter()
        try:
            await self._compile(case)
        except (LoadFailed, Refused, TimeoutError) as error:
            # No fault of the graph's: it may ask again when it has cost as much again.
            log.info("not compiled now", graph=case.digest[:SHOWN], reason=str(error))
            case.state, case.spent = "eager", 0.0
        except Exception as error:
            log.error("compiling failed", graph=case.digest[:SHOWN], exc_info=error)
            case.state, case.result = "refused", Result(reason="internal error")
        finally:
            case.seconds = time.perf_counter() - began
            self._task = None
            if case.state == "compiling":
                case.state = "eager"  # cancelled: we are going down
        if case.state in ("compiled", "refused"):
            log.info(
                "graph compiled" if case.state == "compiled" else "graph not compiled",
                graph=case.digest[:SHOWN],
                reason=case.result.reason,
                speedup=round(case.result.speedup, 2),
                cached=case.result.cached,
                seconds=round(case.seconds, 1),
            )

    async def _compile(self, case: Case) -> None:
        """Have it compiled and tried, then load it; or the case says why not."""
        if case.spec.weights.size > MAX_WEIGHTS:
            return _refused(case, "its weights are too large for a trial")
        dtypes = [TORCH[tensor.datatype] for tensor in case.spec.inputs]
        inputs = job_inputs(case.spec, dtypes)
        with job_folder() as folder:
            until = asyncio.get_running_loop().time() + PATIENCE_S
            try:
                # It has just run: as a rule it is resident, and nobody leaves for it.
                async with self._lease(case.spec, until) as model:
                    graph = model.graph
                    source = await self._graph_bytes(case.spec)
                    await to_its_end(
                        self._executor,
                        write_job,
                        *(folder, source, inputs, model.weights, self._onednn_from),
                    )
            except OSError as error:
                return _refused(case, f"no room for a trial: {error.strerror}")
            case.result = await self._worker(folder, self._cache.folder)
        if case.result.reason:
            return _refused(case, case.result.reason)
        entry = await to_its_end(self._executor, self._cache.find, case.result.key)
        if entry is None:
            return _refused(case, "what was compiled could not be read back")
        weights = len(graph.weights)
        code = await to_its_end(
            self._executor,
            self._opened,
            entry.library,
            weights,
            entry.terms,
            self._lanes,
        )
        self._loaded += 1
        case.code = Compiled(graph.eager, code, weights, entry.terms)
        case.state = "compiled"
        graph.forward = case.code
        return None

    async def aclose(self) -> None:
        """Stop compiling; the worker is gone when this returns."""
        self._closing = True
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task


def _refused(case: Case, reason: str) -> None:
    case.state, case.result = "refused", Result(reason=reason)
