"""One call for several models of one graph: their weights stacked, a model a row.

    stacked    weights of shape (models, *shape): views where the models lie at a
               constant stride in the arena, else views of one copy of their blocks
    across     forward(*stacked weights, *stacked inputs) -> stacked outputs

Owns: both of these. Must not: decide when it pays (runtime/cross.py), or lease.

A graph of linear layers and elementwise functions, applied to rows, becomes the same
graph of `baddbmm`; any other goes through `torch.func.vmap`, whose rules know most ops.
Either way the numbers are the single run's but for the order in which kernels add up.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import fx

from loader.generated import Forward, generate, nodes_of
from loader.graph import Graph
from loader.model import Model
from loader.weights import bind

_nn = torch._C._nn
_functions = torch._C._VariableFunctions

_SAME = frozenset(
    {
        *(_functions.relu, _functions.sigmoid, _functions.tanh, _functions.exp),
        *(_functions.neg, _functions.abs, _functions.square, _nn.gelu, _nn.silu),
        *(_nn.hardtanh, _nn.hardswish, _nn.hardsigmoid, _nn.leaky_relu, _nn.elu),
        _nn.softplus,
    }
)
"""What does to each number the same, wherever it stands: a stack of rows is rows."""

_ALONG = frozenset({_functions.softmax, _functions.log_softmax})
"""What works along one dimension, its second argument."""

_PAIRED = frozenset({_functions.add, _functions.sub, _functions.mul, _functions.div})
"""Elementwise in two tensors of one rank, or one tensor and a number."""


def stride_of(models: Sequence[Model]) -> int | None:
    """Bytes from each of these models to the next, None if they lie otherwise.

    `models` in the order of their places; of one graph.
    """
    first = models[0]
    step = models[1].block.start - first.block.start if len(models) > 1 else 0
    if step <= 0:
        return None
    for index, model in enumerate(models):
        if (
            model.block.slab is not first.block.slab
            or model.block.start != first.block.start + index * step
            or model.placed is not first.placed
        ):
            return None
    return step


def run_around(models: Sequence[Model], at: int, most: int) -> slice:
    """Those around one of them that lie at a constant stride, so many at most.

    `models` in the order of their places; of one graph.
    """
    steps = [stride_of(pair) for pair in pairwise(models)]
    first, last = at, at
    for near in range(max(0, at - 1), min(len(steps), at + 1)):
        begin = end = near
        while begin > 0 and steps[begin - 1] == steps[near]:
            begin -= 1
        while end + 1 < len(steps) and steps[end + 1] == steps[near]:
            end += 1
        if steps[near] is not None and end + 1 - begin > last - first:
            first, last = begin, end + 1
    first = max(first, min(at - most // 2, last + 1 - most))
    return slice(first, min(last + 1, first + most))


def stacked(models: Sequence[Model]) -> tuple[torch.Tensor, ...]:
    """The models' weights, one above the other. Valid while all of them are leased."""
    count, first = len(models), models[0]
    step = stride_of(models)
    if step is not None:
        return _strided(first.weights, count, step)
    if any(model.placed is not first.placed for model in models):
        columns = zip(*[model.weights for model in models], strict=True)
        return tuple([torch.stack(column) for column in columns])
    # One op whatever the number of weights: the blocks are copied whole.
    copy = torch.stack([model.buffer for model in models if model.buffer is not None])
    return _strided(bind(first.views, copy[0]), count, copy.shape[1])


def _strided(
    weights: Sequence[torch.Tensor], count: int, step: int
) -> tuple[torch.Tensor, ...]:
    """Views of as many tensors, `step` bytes apart, the first of which are `weights`.

    A block begins at a multiple of 256 bytes (loader/arena.py): any item divides it.
    """
    return tuple(
        [
            weight.as_strided(
                (count, *weight.shape),
                (step // weight.itemsize, *weight.stride()),
                weight.storage_offset(),
            )
            for weight in weights
        ]
    )


def across(graph: Graph, ranks: Sequence[int]) -> Forward:
    """The graph over stacked weights and inputs. `ranks`: of its inputs, alone."""
    chain = _Chain(graph, ranks).made()
    return chain or cast(Forward, torch.func.vmap(graph.plain))


class _Chain:
    """A graph of linear layers, rewritten; `made` gives None if it is not one."""

    def __init__(self, graph: Graph, ranks: Sequence[int]) -> None:
        self._nodes = nodes_of(graph.plain).nodes
        self._weights = len(graph.weights)
        self._ranks = ranks
        self._made = fx.Graph()
        self._new: dict[fx.Node, fx.Node] = {}
        self._rank: dict[fx.Node, int] = {}

    def made(self) -> Forward | None:
        """The new forward."""
        for index, node in enumerate(self._nodes):
            if node.op == "placeholder":
                self._placeholder(index, node)
            elif node.op == "output":
                self._made.output(
                    fx.node.map_arg(node.args[0], lambda old: self._new[old])
                )
            elif not self._call(node):
                return None
        last = next(node for node in self._nodes if node.op == "output")
        if not all(node in self._rank for node in last.all_input_nodes):
            return None  # a weight, given back as it is
        return generate(self._made)

    def _placeholder(self, index: int, node: fx.Node) -> None:
        self._new[node] = self._made.placeholder(node.name)
        if index >= self._weights:
            self._rank[node] = self._ranks[index - self._weights]

    def _call(self, node: fx.Node) -> bool:
        """Rewrite a call; False if it is none that we know."""
        target, args = node.target, node.args
        first = args[0] if args else None
        rank = self._rank.get(first) if isinstance(first, fx.Node) else None
        if node.op != "call_function" or rank is None:
            return False
        if target is _nn.linear:
            return rank == 2 and self._linear(node)
        rest: tuple[fx.node.Argument, ...] | None = None
        if target in _SAME:
            rest = args[1:]
        elif target in _ALONG and isinstance(args[1], int):
            rest = (args[1] if args[1] < 0 else args[1] + 1, *args[2:])
        elif target in _PAIRED and len(args) == 2:
            rest = self._other(args[1], rank)
        return rest is not None and self._copied(node, rest)

    def _other(
        self, other: fx.node.Argument, rank: int
    ) -> tuple[fx.node.Argument, ...] | None:
        """The second of a pair on the stack; None if it is broadcast."""
        if isinstance(other, fx.Node):
            same = self._rank.get(other) == rank
            return (self._new[other],) if same else None
        return (other,) if isinstance(other, int | float) else None

    def _copied(self, node: fx.Node, rest: tuple[fx.node.Argument, ...]) -> bool:
        """The same call on the stack."""
        others = [arg for arg in rest if isinstance(arg, fx.Node)]
        named = any(isinstance(arg, fx.Node) for arg in node.kwargs.values())
        if named or any(arg not in self._new.values() for arg in others):
            return False
        first = cast(fx.Node, node.args[0])
        target = cast(Callable[..., object], node.target)
        made = self._made.call_function(
            target, (self._new[first], *rest), dict(node.kwargs)
        )
        self._new[node], self._rank[node] = made, self._rank[first]
        return True

    def _linear(self, node: fx.Node) -> bool:
        """rows @ weight.T + bias, for every model of the stack."""
        x, weight, *rest = [
            self._new.get(arg) if isinstance(arg, fx.Node) else None
            for arg in node.args
        ]
        if x is None or weight is None or node.args[1] in self._rank or node.kwargs:
            return False
        call = self._made.call_function
        turned = call(_functions.transpose, (weight, 1, 2))
        if rest and rest[0] is not None:
            if node.args[2] in self._rank:
                return False
            bias = call(_functions.unsqueeze, (rest[0], 1))
            made = call(_functions.baddbmm, (bias, x, turned))
        else:
            made = call(_functions.bmm, (x, turned))
        self._new[node], self._rank[node] = made, 2
        return True
