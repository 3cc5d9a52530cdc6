"""Does it pay to run several models of one graph as one call? Measured, not guessed.

    who          lines of one graph, whose next calls have the same shapes and rows
    first use    they run one by one; a thread tries the graph on made-up weights of the
                 same shapes and a row that was asked: one by one, and as one call
                 (loader/across.py)
    from then    one call where that was quicker by GAIN, if its answers agreed

Owns: the verdicts and the thread that finds them. Must not: delay a request, touch a
real model's weights, queue or lease: all who share a call hold leases of their own
until it ends (trap 4 of runtime/cache.py).
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import structlog
import torch

from loader.across import across, run_around
from loader.alike import alike
from loader.generated import Forward
from loader.graph import Graph
from loader.load import Model
from loader.manifest import ModelSpec
from loader.threads import stand_back
from runtime.conformance import Fitted, Signature
from runtime.example import terms
from runtime.lanes import keep_to_share

log = structlog.get_logger()

LEAST = 4
"""Models; for fewer the stacking is hardly ever worth it."""

MOST = 64
"""Models that are looked at for one call."""

GAIN = 1.25
"""How much quicker one call must be. Below it the noise of a measurement decides."""

TRIED = 16
"""Models in a trial, and in one call at most: what more would gain was not tried (their
numbers leave the caches), and it bounds what a call holds the loop or a lane up for."""

TRIAL_BYTES = 64 << 20
"""Of made-up weights. A graph that needs more is busy with its numbers and not with
calls, and gains nothing."""

ROUNDS = 20
KEPT = 1024

Kinds = tuple[str, ...]
Key = tuple[str, Kinds, Signature, int]


def key(model: Model, asked: Fitted, rows: int) -> Key:
    """What calls must have in common to be one. The datatypes too: a graph that begins
    with a cast, or looks ids up, is the same graph for models that take other ones."""
    return model.graph.digest, kinds(asked), asked.signature, rows


def kinds(asked: Fitted) -> Kinds:
    """The datatypes of its inputs."""
    return tuple([piece.datatype for piece in asked.pieces])


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a trial found. `basis`: what one by one ran; another is tried anew.

    `in_place`, `copied`: one by one / one call, for models at a constant stride in the
    arena, and for others, whose weights have to be copied first; 0: it cannot be."""

    basis: Forward
    forward: Forward | None = None
    in_place: float = 0.0
    copied: float = 0.0


class Disagrees(Exception):
    """One call gives other answers."""


class Cross:
    """Verdicts by graph and shapes. One instance, one event loop."""

    def __init__(self) -> None:
        self._verdicts: dict[Key, Verdict] = {}
        # An op that is done model by model is slower than it could be, and a trial will
        # notice; a line on standard error among records of JSON helps nobody.
        quiet = torch._C._functorch._set_vmap_fallback_warning_enabled  # type: ignore[attr-defined]
        quiet(False)
        self._loop = asyncio.get_running_loop()
        self._threads = ThreadPoolExecutor(1, "cross", _stand_ready)

    def may(self, model: Model, asked: Fitted, rows: int) -> bool:
        """False if it is known not to pay: then nobody need look for mates."""
        if not model.spec.max_batch_size:
            return False
        found = self._verdicts.get(key(model, asked, rows))
        if found is None or self._stale(found, model):
            return True
        return found.forward is not None and max(found.in_place, found.copied) >= GAIN

    def forward(
        self, models: Sequence[Model], at: int, asked: Fitted, rows: int
    ) -> tuple[Forward, slice] | None:
        """The call for some of these models, one of which is `models[at]`, `rows` each,
        and for which; None: one by one. In the order of their places."""
        first = models[0]
        what = key(first, asked, rows)
        found = self._verdicts.get(what)
        if found is None or self._stale(found, first):
            self._try(what, first, asked, rows)
            return None
        run = run_around(models, at, TRIED)
        if found.in_place < GAIN or run.stop - run.start < LEAST:
            if found.copied < GAIN:
                return None
            begin = max(0, min(at - TRIED // 2, len(models) - TRIED))
            run = slice(begin, min(len(models), begin + TRIED))
        return None if found.forward is None else (found.forward, run)

    def _stale(self, found: Verdict, model: Model) -> bool:
        return found.basis is not model.graph.forward

    def _try(self, what: Key, model: Model, asked: Fitted, rows: int) -> None:
        graph, spec, device = model.graph, model.spec, model.device
        if len(self._verdicts) >= KEPT:
            self._verdicts.clear()
        # Until the trial has ended: one by one.
        self._verdicts[what] = Verdict(graph.forward)

        wanted = terms(asked, rows)

        def tried() -> Verdict:
            # In the thread: a device that is full is a trial that failed, and no error
            # of whoever's turn it is.
            return trial(graph, wanted.inputs(device), device)

        task = self._loop.run_in_executor(self._threads, tried)
        task.add_done_callback(lambda ended: self._tried(what, spec, ended))

    def _tried(
        self, what: Key, spec: ModelSpec, ended: "asyncio.Future[Verdict]"
    ) -> None:
        if ended.cancelled():
            return
        error = ended.exception()
        if error is not None:  # an op without a batching rule, or answers that differ
            reason = type(error).__name__
            log.info("models stay apart", model=spec.name, reason=reason)
            return
        found = self._verdicts[what] = ended.result()
        log.info(
            "models tried together",
            model=spec.name,
            in_place=round(found.in_place, 2),
            copied=round(found.copied, 2),
        )

    def close(self) -> None:
        """End the thread; returns when it has."""
        self._threads.shutdown(wait=True, cancel_futures=True)


def _stand_ready() -> None:
    """Behind whoever answers, and with a lane's share of the cores."""
    stand_back()
    keep_to_share()


def filled(
    shape: Sequence[int], dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """Numbers that no function makes infinite; indices that every table has."""
    if dtype.is_floating_point:
        return torch.rand(shape, device=device).to(dtype) * 0.1
    return torch.zeros(tuple(shape), dtype=dtype, device=device)


def trial(
    graph: Graph, inputs: Sequence[torch.Tensor], device: torch.device
) -> Verdict:
    """One by one against one call, on made-up weights. In the thread."""
    basis = graph.forward
    with torch.inference_mode():
        nbytes = sum(_nbytes(w.shape, w.dtype) for w in graph.weights)
        if nbytes * TRIED > TRIAL_BYTES:
            return Verdict(basis)
        weights = [filled((TRIED, *w.shape), w.dtype, device) for w in graph.weights]
        models = [tuple([w[index] for w in weights]) for index in range(TRIED)]
        # Each its own: one that is copied again and again is in the nearest cache.
        blocks = [
            torch.zeros(nbytes, dtype=torch.uint8, device=device) for _ in range(TRIED)
        ]
        stack = [torch.stack([given] * TRIED) for given in inputs]
        forward = across(graph, [given.dim() for given in inputs])

        def one_by_one() -> list[tuple[torch.Tensor, ...]]:
            return [basis(*mine, *inputs) for mine in models]

        def together() -> tuple[torch.Tensor, ...]:
            views = [w.as_strided(w.shape, w.stride()) for w in weights]
            return forward(*views, *stack)

        _agree(one_by_one(), together())
        alone, one, copy = least(
            device, one_by_one, together, lambda: torch.stack(blocks)
        )
    return Verdict(basis, forward, alone / one, alone / (one + copy))


def _nbytes(shape: Sequence[int], dtype: torch.dtype) -> int:
    return torch.Size(shape).numel() * dtype.itemsize


def _agree(
    alone: Sequence[tuple[torch.Tensor, ...]], shared: tuple[torch.Tensor, ...]
) -> None:
    """Raises Disagrees. By packing's tolerance: one by one a layer may run in another
    library than in one call (loader/linear.py)."""
    for index, outputs in enumerate(alone):
        for wanted, got in zip(outputs, shared, strict=True):
            mine = got[index]
            same = mine.shape == wanted.shape and mine.dtype == wanted.dtype
            if not same or not alike(mine, wanted):
                raise Disagrees


def least(device: torch.device, *works: Callable[[], object]) -> list[float]:
    """The least seconds of each, in turns: a busy moment hits all of them. On a CPU
    those that this thread had a core and the interpreter: requests go before it."""
    clock = time.perf_counter if device.type == "cuda" else time.thread_time
    found = [float("inf")] * len(works)
    for _ in range(ROUNDS):
        for index, work in enumerate(works):
            began = clock()
            work()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            found[index] = min(found[index], clock() - began)
    return found
