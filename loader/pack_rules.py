"""Exported calls that are not written as they are.

Owns: one rule a call: what to write instead, or which value it simply is. Must not:
walk graphs (loader/pack_normalise.py).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import fx

from loader.pack_nodes import Json, Nodes, Problem

ALIASES = frozenset(
    f"aten.{name}"
    for name in (
        *("detach.default", "detach_.default", "alias.default", "lift.default"),
        *("lift_fresh.default", "lift_fresh_copy.default", "requires_grad_.default"),
        *("dropout.default", "dropout_.default", "alpha_dropout.default"),
        *("alpha_dropout_.default", "feature_dropout.default"),
        *("feature_dropout_.default", "feature_alpha_dropout.default"),
        *("feature_alpha_dropout_.default",),
    )
)
"""Calls that give back their first argument when a model serves."""

INSTEAD = {
    "aten.empty.memory_format": "aten.zeros.default",
    "aten.empty_like.default": "aten.zeros_like.default",
    "aten.new_empty.default": "aten.new_zeros.default",
    "aten.sym_size.int": "size",
    "aten.size.int": "size",
}
"""Nothing shows memory nobody wrote; and `vmap` has a rule for size, not sym_size."""

END = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Call:
    """One exported call: its op as we write it, its arguments by name, translated."""

    node: fx.Node
    op: str
    given: dict[str, Json]

    def tensor(self, argument: int | None = None) -> torch.Tensor | None:
        """What stands for the result, or for a positional argument, while exporting."""
        node = self.node if argument is None else self.node.args[argument]
        value = node.meta.get("val") if isinstance(node, fx.Node) else None
        return value if isinstance(value, torch.Tensor) else None


def at(node: fx.Node) -> str:
    """Where in the model: the submodule that was running."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values()]
    return f"in {paths[-1]}" if paths and paths[-1] else ""


def _alias(_: Nodes, call: Call) -> Json:
    """A value by another name, unless it would be drawn at random."""
    if call.given.get("train") is True:
        return Problem(
            f"{call.op} drops at random although the module serves; it must heed eval",
            at(call.node),
        )
    return next(iter(call.given.values()))


def _to(nodes: Nodes, call: Call) -> Json:
    """All the ways to change a dtype are one; to the same dtype, none."""
    wanted = call.tensor()
    before = call.tensor(0)
    if wanted is None or before is None or wanted.dtype == before.dtype:
        return call.given["self"]
    given = {
        "self": call.given["self"],
        "dtype": {"dtype": str(wanted.dtype).removeprefix("torch.")},
    }
    return nodes.call("aten.to.dtype", given, at(call.node))


def _clone(nodes: Nodes, call: Call) -> Json:
    """A copy that moves nothing is the value itself."""
    before, after = call.tensor(0), call.tensor()
    if before is not None and after is not None:
        strides = [[str(stride) for stride in t.stride()] for t in (before, after)]
        if strides[0] == strides[1]:
            return call.given["self"]
    return nodes.call(call.op, call.given, at(call.node))


def _view(nodes: Nodes, call: Call) -> Json:
    """A view holds for the strides it was traced with, and those differ by device and
    under `vmap`; a reshape is that view wherever it can be one."""
    given = {"self": call.given["self"], "shape": call.given["size"]}
    return nodes.call("aten.reshape.default", given, at(call.node))


def _slice(nodes: Nodes, call: Call) -> Json:
    """`x[:]` is `x`."""
    return call.given["self"] if _whole(call) else _sliced(nodes, call)


def _slice_scatter(nodes: Nodes, call: Call) -> Json:
    """`x` with all of it replaced by `y` is `y`."""
    return call.given["src"] if _whole(call) else _sliced(nodes, call)


def _sliced(nodes: Nodes, call: Call) -> Json:
    """Bounds from the start where the size is known; to the end is no bound.

    `vmap` gets both wrong in slice_scatter: it adds to the bounds it is given.
    """
    given = dict(call.given)
    before, dim = call.tensor(0), given.get("dim", 0)
    size = before.shape[dim] if before is not None and isinstance(dim, int) else None
    for key in ("start", "end"):
        bound = given.get(key)
        if bound == END:
            given[key] = None
        elif isinstance(bound, int) and bound < 0 and isinstance(size, int):
            given[key] = max(bound + size, 0)
    return nodes.call(call.op, given, at(call.node))


def _whole(call: Call) -> bool:
    start, end, step = (call.given.get(key) for key in ("start", "end", "step"))
    return start in (None, 0) and end in (None, END) and step in (None, 1)


def _batch_norm(nodes: Nodes, call: Call) -> Json:
    """What making a graph functional turns batch_norm into, turned back."""
    given = {**call.given, "training": False, "cudnn_enabled": True}
    norm = nodes.call("aten.batch_norm.default", given, at(call.node))
    nothing = Problem("statistics of a batch_norm that serves", at(call.node))
    return [norm, nothing, nothing]


def _weight_norm(nodes: Nodes, call: Call) -> Json:
    """Its parts; torch's own kernel ends the process when sizes are zero."""
    value, where = call.tensor(0), call.given.get("dim", 0)
    if value is None or not isinstance(where, int):
        return Problem("a weight norm over a dimension that varies", at(call.node))
    others = [dim for dim in range(value.dim()) if dim != where % value.dim()]
    v, g = call.given["v"], call.given["g"]
    norm = nodes.call(
        "aten.linalg_vector_norm.default",
        {"self": v, "ord": 2, "dim": others if where != -1 else None, "keepdim": True},
        at(call.node),
    )
    scale = nodes.call("aten.div.Tensor", {"self": g, "other": norm}, at(call.node))
    return nodes.call("aten.mul.Tensor", {"self": v, "other": scale}, at(call.node))


def _native_dropout(nodes: Nodes, call: Call) -> Json:
    if call.given.get("train") is not False:
        return nodes.call(call.op, call.given, at(call.node))
    return [call.given["input"], Problem("the mask of a dropout", at(call.node))]


RULES: Mapping[str, Callable[[Nodes, Call], Json]] = {
    "aten.to.device": _to,
    "aten.to.dtype": _to,
    "aten.to.dtype_layout": _to,
    "aten.to.other": _to,
    "aten.to.prim_Device": _to,
    "aten._to_copy.default": _to,
    "aten.type_as.default": _to,
    "aten.clone.default": _clone,
    "aten.view.default": _view,
    "aten._unsafe_view.default": _view,
    "aten.slice.Tensor": _slice,
    "aten.slice_scatter.default": _slice_scatter,
    "aten._native_batch_norm_legit_no_training.default": _batch_norm,
    "aten._weight_norm.default": _weight_norm,
    "aten.native_dropout.default": _native_dropout,
    **dict.fromkeys(ALIASES, _alias),
}
