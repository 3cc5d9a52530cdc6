"""A graph whose large linear layers run in oneDNN (loader/onednn.py).

Owns: which layers these may be, and that everything else is torch's, errors included.
Must not: measure, or touch a graph's own nodes: they are what is compiled, and what
runs several models as one call.
"""

from collections.abc import Mapping
from typing import cast

import structlog
import torch
from torch import fx

from loader.generated import Forward, generate, nodes_of
from loader.graph import Graph, WeightSpec
from loader.onednn import (
    LEAST_ROWS,
    ROWS_A_CALL,
    Full,
    Layer,
    OneDnn,
    Share,
    torch_linear,
)

log = structlog.get_logger()

NARROW = 32
"""Outputs, or numbers a row, below which oneDNN may be slower however many rows there
are: 1024 rows by 1024 x 2 took 244 us, 132 in MKL; 320 rows by 1024 x 20, 333 and 207.
"""

_addmm = cast(Layer, torch._C._VariableFunctions.addmm)


def prefer_onednn(graph: Graph, onednn: OneDnn | None) -> Graph:
    """The graph, which runs its large layers there. Before its first call."""
    if onednn is not None:
        graph.eager = graph.forward = rewritten(graph, onednn) or graph.plain
    return graph


def rewritten(graph: Graph, onednn: OneDnn) -> Forward | None:
    """Its forward, with what may become a large layer in oneDNN; None if none may."""
    nodes = nodes_of(graph.plain)
    # A graph's weights are its first placeholders.
    weights = dict(zip(nodes.nodes, graph.weights, strict=False))
    share = Share(onednn)
    layers = {
        node: _layer(node, weights, onednn.onednn_from, share) for node in nodes.nodes
    }
    if not any(layers.values()):
        return None
    made, places = fx.Graph(), dict[fx.Node, fx.Node]()
    made.output(made.graph_copy(nodes, places))
    for node, layer in layers.items():
        if layer is not None:
            places[node].target = layer
    return generate(made)


def _layer(
    node: fx.Node,
    weights: Mapping[fx.Node, WeightSpec],
    onednn_from: int,
    share: Share,
) -> Layer | None:
    """What to call in place of this node; None to leave it."""
    if node.op != "call_function" or node.kwargs:
        return None
    if node.target is torch_linear:
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
    if not known or min(wide, deep) < NARROW:
        return None
    rows = max(LEAST_ROWS, -(-onednn_from // (wide * deep)))
    if rows > ROWS_A_CALL:  # no call of it would be large
        return None
    return (_turned if turned else _plain)(deep, rows, share)


def _fits(bias: WeightSpec | None, wide: int) -> bool:
    return bias is not None and bias.dtype is torch.float32 and bias.shape == (wide,)


def _plain(deep: int, rows: int, share: Share) -> Layer:
    """`linear` of inputs whose rows have `deep` numbers: in oneDNN for so many rows.

    What does not fit is never handed to it, so that torch says what is wrong. That
    weight and bias fit is known: they are the graph's own, and contiguous, for a header
    says no strides.
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
            return torch_linear(x, weight, bias)
        failed = False
        try:
            return share.linear(x, weight, bias)
        except (Full, MemoryError):
            pass
        except RuntimeError as error:
            # Out of memory it is not to blame, and torch, which needs less, may do it.
            said = str(error)
            failed = "allocate memory" not in said and "bad_alloc" not in said
        # Not in the `except`: there the failed call's tensors would still be held.
        answer = torch_linear(x, weight, bias)  # fails too: the request was wrong
        if failed:
            log.warning("a linear layer leaves oneDNN", numbers_a_row=deep)
            trusted = False
        return answer

    return linear


def _turned(deep: int, rows: int, share: Share) -> Layer:
    """The same for `addmm`, whose weight lies the other way round."""
    linear, fewest = _plain(deep, rows, share), rows * deep

    def addmm(
        bias: torch.Tensor, x: torch.Tensor, weight: torch.Tensor
    ) -> torch.Tensor:
        if x.numel() < fewest or x.dim() != 2:
            return _addmm(bias, x, weight)
        return linear(x, weight.t(), bias)

    return addmm
