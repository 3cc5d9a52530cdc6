"""Linear layers on a CPU, in whichever of torch's two libraries is quicker at them.

    compared         which is, on this processor: measured
    prefer_onednn    a graph whose large layers go there

Owns: the measurement, and the layers that act on it. Must not: change what a layer
computes, but for the order in which it adds up.

torch hands float32 matrices to MKL, which on an EPYC (Zen 5) did half of what it can:
32 rows by 384 x 1536 took 395 us, and 212 in oneDNN, which torch has in it for
convolutions and narrow types. oneDNN costs about 10 us a call, and 0.5 ms the first
time that it meets a number of rows: it writes machine code for each. So only large
layers go there (docs/decisions/0026-kernels-of-linear-layers.md).

`onednn_from`, here and wherever it is handed on: multiplications from which a layer
runs in oneDNN; 0: none does.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

import structlog
import torch
from torch import fx

from loader.generated import Forward, generate, nodes_of
from loader.graph import Graph, WeightSpec

log = structlog.get_logger()

Layer = Callable[..., torch.Tensor]
Clock = Callable[[], float]

LEAST_ROWS = 4
"""One row is bound by memory, and for two or three MKL reads the weights no more often
than oneDNN."""

MOST_ROWS = 4096
"""A layer so small that only more rows would make it large: hardly a request has them,
and it is called as torch has it."""

PAYS = 1.2
"""How much quicker oneDNN must be at a large layer. Below it the noise decides."""

MARGIN = 1.2
"""How much more must be saved than the dearer call costs."""

FEWEST, MOST = 1 << 18, 1 << 26
"""The threshold lies between them: below are layers that nobody measured, and beyond
hardly any of a small model's."""

WARM_UPS = 3
ROUNDS = 12
_SMALL, _LARGE = (8, 64, 64), (32, 768, 768)

_linear = torch._C._nn.linear
_addmm = cast(Layer, torch._C._VariableFunctions.addmm)


@dataclass(frozen=True, slots=True)
class Compared:
    """`speedup`: MKL's time by oneDNN's at a large layer. `reason`: why none goes
    there; empty if they do."""

    onednn_from: int
    speedup: float = 1.0
    reason: str = ""


def onednn() -> Layer | None:
    """Its operator, which torch's own compiler uses; None if this torch lacks it."""
    found = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    return None if found is None else cast(Layer, found.default)


def compared(quicker: Layer | None, clock: Clock = time.perf_counter) -> Compared:
    """Where `quicker`, oneDNN's operator, is. Takes 15 ms; with as many threads a call
    as torch has just now."""
    if quicker is None:
        return Compared(0, reason="this torch has no oneDNN operator")
    with torch.inference_mode():
        try:
            small = _quickest(quicker, clock, *_SMALL)
            large = _quickest(quicker, clock, *_LARGE)
        except RuntimeError:
            return Compared(0, reason="this torch was built without oneDNN")
    return crossover(small, large)


def crossover(small: tuple[float, float], large: tuple[float, float]) -> Compared:
    """Where a layer begins to gain, of the seconds that a small one and a large one
    take in (MKL, oneDNN): a call costs so much more, each multiplication so much less.
    """
    speedup = large[0] / large[1]
    if speedup < PAYS:
        return Compared(0, speedup, "not quicker here")
    saved = (large[0] - large[1]) / math.prod(_LARGE)
    pays = MARGIN * (small[1] - small[0]) / saved
    # To the nearest power of four: servers of one kind of machine choose alike, mostly.
    found = 1 << 2 * round(math.log2(max(pays, FEWEST)) / 2)
    if found > MOST:
        return Compared(0, speedup, "quicker only at layers that are hardly met")
    return Compared(found, speedup)


def _quickest(
    quicker: Layer, clock: Clock, rows: int, deep: int, wide: int
) -> tuple[float, float]:
    """The least seconds of a layer in MKL and in oneDNN, in turns."""
    x, weight = torch.full((rows, deep), 0.5), torch.full((wide, deep), 0.5)
    bias, found = torch.full((wide,), 0.5), [math.inf, math.inf]
    for number in range(WARM_UPS + ROUNDS):
        for index in range(2):
            began = clock()
            if index:
                quicker(x, weight, bias, "none", [], "")
            else:
                _linear(x, weight, bias)
            if number >= WARM_UPS:
                found[index] = min(found[index], clock() - began)
    return found[0], found[1]


def prefer_onednn(graph: Graph, onednn_from: int) -> Graph:
    """The graph, which runs its large layers there. Before its first call."""
    quicker = onednn()
    if onednn_from and quicker is not None:
        sooner = rewritten(graph, onednn_from, quicker)
        graph.eager = graph.forward = sooner or graph.plain
    return graph


def rewritten(graph: Graph, onednn_from: int, quicker: Layer) -> Forward | None:
    """Its forward, with what may become a large layer in oneDNN; None if none may."""
    nodes = nodes_of(graph.plain)
    made, places = fx.Graph(), dict[fx.Node, fx.Node]()
    made.output(made.graph_copy(nodes, places))
    # A graph's weights are its first placeholders.
    weights = {
        places[node]: spec
        for node, spec in zip(nodes.nodes, graph.weights, strict=False)
    }
    found = False
    for node in made.nodes:
        layer = _layer(node, weights, onednn_from, quicker)
        if layer is not None:
            node.target, found = layer, True
    return generate(made) if found else None


def _layer(
    node: fx.Node,
    weights: Mapping[fx.Node, WeightSpec],
    onednn_from: int,
    quicker: Layer,
) -> Layer | None:
    """What to call in place of this node; None to leave it."""
    if node.op != "call_function" or node.kwargs:
        return None
    if node.target is _linear:
        _, weight, *rest = node.args
        bias = rest[0] if rest else None
    elif node.target is _addmm:
        bias, _, weight = node.args
    else:
        return None
    spec = weights.get(cast(fx.Node, weight))
    if spec is None or spec.dtype is not torch.float32 or len(spec.shape) != 2:
        return None
    turned = node.target is _addmm
    wide, deep = reversed(spec.shape) if turned else spec.shape
    known = bias is None or _fits(weights.get(cast(fx.Node, bias)), wide)
    if not known or not wide * deep:
        return None
    rows = max(LEAST_ROWS, -(-onednn_from // (wide * deep)))
    if rows > MOST_ROWS:
        return None
    return (_addmm_layer if turned else _linear_layer)(deep, rows, quicker)


def _fits(bias: WeightSpec | None, wide: int) -> bool:
    return bias is not None and bias.dtype is torch.float32 and bias.shape == (wide,)


def _linear_layer(deep: int, rows: int, quicker: Layer) -> Layer:
    """`linear` of inputs whose rows have `deep` numbers: in oneDNN for so many rows.

    Its operator is not a documented one: what does not fit is never handed to it, so
    that torch says what is wrong.
    """
    fewest, trusted = rows * deep, True

    def linear(
        x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        nonlocal trusted
        if (
            x.numel() < fewest
            or x.dtype is not torch.float32
            or x.shape[-1] != deep
            or not trusted
        ):
            return _linear(x, weight, bias)
        try:
            return quicker(x, weight, bias, "none", [], "")
        except RuntimeError as error:
            answer = _linear(x, weight, bias)  # fails too: the request was wrong
            trusted = _distrusted(error)
            return answer

    return linear


def _addmm_layer(deep: int, rows: int, quicker: Layer) -> Layer:
    """The same for `addmm`, whose weight lies the other way round."""
    linear = _linear_layer(deep, rows, quicker)
    fewest = rows * deep

    def addmm(
        bias: torch.Tensor, x: torch.Tensor, weight: torch.Tensor
    ) -> torch.Tensor:
        if x.numel() < fewest or x.dim() != 2:
            return _addmm(bias, x, weight)
        return linear(x, weight.t(), bias)

    return addmm


def _distrusted(error: RuntimeError) -> bool:
    log.warning("a linear layer leaves oneDNN", reason=type(error).__name__)
    return False
