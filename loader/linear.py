"""Linear layers on a CPU, in whichever of torch's two libraries is sooner at them.

    measured     which is, on this processor: asked once
    rewritten    a graph whose layers ask for it, from so much work on

Owns: that question, and when it is answered with oneDNN. Must not: change what a layer
computes, but for the order in which it adds up.

torch hands float32 matrices to MKL, which on processors of other makers than Intel runs
at half of what they can do: 32 rows by 384 x 1536 took 391 us on an EPYC (Zen 5), and
212 us in oneDNN, which torch has in it for convolutions and narrow types. oneDNN costs
about 10 us a call, and 0.5 ms the first time that it meets a number of rows (it writes
machine code for each, and keeps that of the last 1,024), so small layers stay as they
are.
"""

import math
import time
from collections.abc import Callable, Mapping
from types import MethodType
from typing import cast

import torch
from torch import fx

from loader.graph import Forward, Graph, WeightSpec, generate

Layer = Callable[..., torch.Tensor]

LEAST_ROWS = 4
"""One row is bound by memory, and for two or three MKL reads the weights no more often
than oneDNN."""

GAIN = 1.2
"""How much sooner oneDNN must be at a large layer. Below it the noise decides."""

MOST = 1 << 27
"""Multiplications in a layer that nothing here has as few as: where it would begin to
pay only beyond, it does not."""

WARM_UPS = 3
ROUNDS = 12
_SMALL, _LARGE = (8, 64, 64), (32, 768, 768)

_plain = torch._C._nn.linear


def measured() -> int | None:
    """Multiplications from which on oneDNN is sooner, a power of four; None: never.

    Takes 20 ms. With as many threads a call as torch has just now.
    """
    onednn = _onednn()
    if onednn is None:
        return None
    with torch.inference_mode():
        try:
            small = _least(onednn, *_SMALL)
            large = _least(onednn, *_LARGE)
        except RuntimeError:
            return None  # built without it
    return crossover(small, large)


def crossover(small: tuple[float, float], large: tuple[float, float]) -> int | None:
    """Where a layer begins to gain, of the seconds that a small one and a large one
    take in (MKL, oneDNN): a call costs so much more, each multiplication so much less.
    """
    gain = large[0] / large[1]
    if gain < GAIN:
        return None
    dearer = max(small[1] - small[0], 0.0)
    saved = (large[0] - large[1]) / math.prod(_LARGE)
    least = GAIN * dearer / saved
    # To the nearest power of four: servers of one kind of machine then choose alike.
    found = 1 << max(2 * round(math.log2(max(least, 1.0)) / 2), 18)
    return found if found <= MOST else None


def rewritten(graph: Graph, least: int) -> Forward | None:
    """The graph with layers of so much work in oneDNN; None if it has none such."""
    module = cast(MethodType, graph.plain).__self__
    nodes = cast(fx.GraphModule, module).graph
    made, places = fx.Graph(), dict[fx.Node, fx.Node]()
    made.output(made.graph_copy(nodes, places))
    weights = {
        places[node]: spec
        for node, spec in zip(nodes.nodes, graph.weights, strict=False)
    }
    found = False
    for node in made.nodes:
        layer = _layer(node, weights, least)
        if layer is not None:
            node.target, found = layer, True
    return generate(made) if found else None


def _layer(
    node: fx.Node, weights: Mapping[fx.Node, WeightSpec], least: int
) -> Layer | None:
    """What to call in place of this node; None to leave it."""
    if node.op != "call_function" or node.target is not _plain or node.kwargs:
        return None
    _, weight, *rest = node.args
    spec = weights.get(cast(fx.Node, weight))
    bias = weights.get(cast(fx.Node, rest[0])) if rest and rest[0] is not None else None
    if spec is None or spec.dtype is not torch.float32 or len(spec.shape) != 2:
        return None
    wide, deep = spec.shape
    if wide * deep == 0 or (rest and rest[0] is not None and not _fits(bias, wide)):
        return None
    return in_onednn(deep, max(LEAST_ROWS, -(-least // (wide * deep))))


def _fits(bias: WeightSpec | None, wide: int) -> bool:
    return bias is not None and bias.dtype is torch.float32 and bias.shape == (wide,)


def in_onednn(deep: int, rows: int) -> Layer:
    """A layer whose rows have `deep` numbers: in oneDNN for so many and more.

    oneDNN believes what it is told, so what does not fit goes to torch, which says so.
    """
    enough, onednn = rows * deep, cast(Layer, _onednn())

    def linear(
        x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        if x.numel() < enough or x.dtype is not torch.float32 or x.shape[-1] != deep:
            return _plain(x, weight, bias)
        try:
            return onednn(x, weight, bias, "none", [], "")
        except RuntimeError:  # it has no way of its own to do this one
            return _plain(x, weight, bias)

    return linear


def _onednn() -> Layer | None:
    """The operator, which torch's own compiler uses; None if this torch lacks it."""
    found = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    return None if found is None else cast(Layer, found.default)


def _least(onednn: Layer, rows: int, deep: int, wide: int) -> tuple[float, float]:
    """The least seconds of a layer in MKL and in oneDNN, in turns."""
    x, weight = torch.rand(rows, deep), torch.rand(wide, deep)
    bias = torch.rand(wide)
    works: tuple[Callable[[], object], ...] = (
        lambda: _plain(x, weight, bias),
        lambda: onednn(x, weight, bias, "none", [], ""),
    )
    found = [math.inf, math.inf]
    for number in range(WARM_UPS + ROUNDS):
        for index, work in enumerate(works):
            began = time.perf_counter()
            work()
            if number >= WARM_UPS:
                found[index] = min(found[index], time.perf_counter() - began)
    return found[0], found[1]
