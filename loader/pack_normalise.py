"""From what torch.export gives to the nodes of `graph.json`.

Owns: which exported call becomes which node, and which becomes none (dropout, detach,
copies that copy nothing, assertions). Must not: export, or know weights' values.

It reads the exported graph from top to bottom and writes calls of our own; nothing is
changed in place. It takes for granted that no call writes to an argument (`writes` says
so, loader/pack_export.py sees to it): then an alias, or a copy, is the value itself.
"""

import math
import operator
from collections.abc import Mapping, Sequence

import torch
from torch import fx
from torch._ops import HigherOrderOperator, OpOverload

from loader.ops import PLACED
from loader.pack_nodes import Json, Nodes, Problem, Written
from loader.pack_rules import ALIASES, INSTEAD, RULES, Call, at

ON_INTS: Mapping[object, tuple[str, tuple[str, ...]]] = {
    operator.add: ("int.add", ("left", "right")),
    operator.sub: ("int.sub", ("left", "right")),
    operator.mul: ("int.mul", ("left", "right")),
    operator.floordiv: ("int.floordiv", ("left", "right")),
    operator.mod: ("int.mod", ("left", "right")),
    operator.neg: ("int.neg", ("value",)),
    operator.truediv: ("float.div", ("left", "right")),
    torch.sym_max: ("int.max", ("left", "right")),
    torch.sym_min: ("int.min", ("left", "right")),
}

DROPPED = PLACED | {"non_blocking"}
"""Arguments about where a tensor lies. A graph runs on one device, all of it."""

GRAD_BLOCK, AUTOCAST_BLOCK = "wrap_with_set_grad_enabled", "wrap_with_autocast"
"""Blocks that torch.export keeps as one call around a graph of their own."""


def writes(module: fx.GraphModule) -> bool:
    """True if a call of the exported graph writes to an argument, and it matters."""
    return any(
        isinstance(node.target, OpOverload)
        and node.target._schema.is_mutable
        and str(node.target) not in ALIASES
        for part in module.modules()
        if isinstance(part, fx.GraphModule)
        for node in part.graph.nodes
    )


def normalise(
    module: fx.GraphModule, names: Mapping[str, Json], outputs: Sequence[int]
) -> Written:
    """The nodes of an exported graph.

    `names`: placeholder -> `{"weight": ...}` or `{"input": ...}`; `outputs`: which of
    the graph's outputs count.
    """
    translation = _Translation()
    values = {
        node: names[node.name]
        for node in module.graph.nodes
        if node.op == "placeholder"
    }
    results = translation.body(module, values)
    return translation.nodes.finish([results[index] for index in outputs])


class _Translation:
    """The nodes written so far."""

    def __init__(self) -> None:
        self.nodes = Nodes()

    def body(self, module: fx.GraphModule, values: dict[fx.Node, Json]) -> list[Json]:
        """Translate a graph whose placeholders have values; the values it returns."""
        results: list[Json] = []
        for node in module.graph.nodes:
            if node.op == "call_function":
                values[node] = self._call(node, values, module)
            elif node.op == "output":
                results = [_json(item, values, node) for item in node.args[0]]
        return results

    def _call(
        self, node: fx.Node, values: dict[fx.Node, Json], module: fx.GraphModule
    ) -> Json:
        target = node.target
        if isinstance(target, HigherOrderOperator):
            return self._block(node, values, module)
        args = [_json(item, values, node) for item in node.args]
        if isinstance(target, OpOverload):
            kwargs = {key: _json(v, values, node) for key, v in node.kwargs.items()}
            return self._op(node, target, args, kwargs)
        if target is operator.getitem:
            return self._getitem(args, node)
        if target is torch.sym_sum and isinstance(args[0], list):
            return self._sum(args[0], node)
        name, params = ON_INTS.get(target, (_called(target), ()))
        return self.nodes.call(name, dict(zip(params, args, strict=False)), at(node))

    def _op(
        self, node: fx.Node, op: OpOverload, args: list[Json], kwargs: dict[str, Json]
    ) -> Json:
        params = [argument.name for argument in op._schema.arguments]
        given = dict(zip(params, args, strict=False)) | kwargs
        given = {key: value for key, value in given.items() if key not in DROPPED}
        name = INSTEAD.get(str(op), str(op))
        rule = RULES.get(name)
        if rule is not None:
            return rule(self.nodes, Call(node, name, given))
        return self.nodes.call(name, given, at(node))

    def _getitem(self, args: list[Json], node: fx.Node) -> Json:
        several, index = args
        if isinstance(several, list) and isinstance(index, int):
            return several[index]
        return self.nodes.call("getitem", {"self": several, "index": index}, at(node))

    def _sum(self, terms: list[Json], node: fx.Node) -> Json:
        total, *rest = terms
        for term in rest:
            total = self.nodes.call("int.add", {"left": total, "right": term}, at(node))
        return total

    def _block(
        self, node: fx.Node, values: dict[fx.Node, Json], module: fx.GraphModule
    ) -> Json:
        """A block under no_grad, or under a disabled autocast, is its body."""
        kind = _called(node.target)
        if kind == GRAD_BLOCK:
            body, args = node.args[1], node.args[2:]
        elif kind == AUTOCAST_BLOCK and node.args[2] is False:
            body, args = node.args[4], node.args[5:]
        else:
            return Problem(f"the graph format has no {kind} (control flow)", at(node))
        inner = getattr(module, str(body.target)) if isinstance(body, fx.Node) else None
        if not isinstance(inner, fx.GraphModule):
            return Problem(f"{kind} around something that is no graph", at(node))
        given = [_json(item, values, node) for item in args]
        places = [item for item in inner.graph.nodes if item.op == "placeholder"]
        return self.body(inner, dict(zip(places, given, strict=True)))


def _called(target: object) -> str:
    return str(getattr(target, "__name__", target))


def _json(value: object, values: Mapping[fx.Node, Json], node: fx.Node) -> Json:
    """An argument as graph.json writes it."""
    if isinstance(value, fx.Node):
        return values.get(value, Problem(f"{value.target} is not a tensor", at(node)))
    if isinstance(value, list | tuple):
        return [_json(item, values, node) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value  # a device or a layout falls through; such arguments are DROPPED
    for kind, key in ((torch.dtype, "dtype"), (torch.memory_format, "memory_format")):
        if isinstance(value, kind):
            return {key: str(value).removeprefix("torch.")}
    return Problem(f"an argument of type {type(value).__name__}", at(node))
