"""Quicker ways to call listed ops: torch's own C functions instead of overload objects.

Owns: which ops have one. Must not: decide what is listed (loader/ops.py).

`torch.ops.aten.relu.default(x)` goes through a Python call and the JIT's stack of boxed
values; `torch.relu(x)` is the same kernel behind a generated parser, 1.2 to 3 us
sooner, which is a seventh of a small MLP. The parser picks the overload by the
arguments, so only ops are here for which the arguments a graph may give can mean no
other one (tests/test_quick.py calls each both ways).
"""

from collections.abc import Callable, Mapping

import torch

_FUNCTIONS = """
relu.default sigmoid.default tanh.default exp.default log.default sqrt.default
rsqrt.default neg.default abs.default erf.default sin.default cos.default square.default
add.Tensor sub.Tensor mul.Tensor div.Tensor pow.Tensor_Scalar maximum.default
minimum.default eq.Scalar ne.Scalar lt.Scalar gt.Scalar le.Scalar ge.Scalar
mm.default bmm.default matmul.default addmm.default baddbmm.default
conv1d.default conv2d.default conv3d.default max_pool2d.default embedding.default
batch_norm.default layer_norm.default group_norm.default softmax.int log_softmax.int
mean.dim sum.dim_IntList amax.default argmax.default clamp_min.default
cat.default stack.default transpose.int permute.default reshape.default t.default
unsqueeze.default squeeze.dim select.int flatten.using_ints unbind.int
where.self masked_fill.Scalar index_select.default gather.default
"""

_NEURAL = """
linear.default gelu.default silu.default hardswish.default hardsigmoid.default
hardtanh.default leaky_relu.default elu.default softplus.default
adaptive_avg_pool2d.default avg_pool2d.default
"""

Function = Callable[..., object]


def _named(listed: str, place: object) -> dict[str, Function]:
    return {
        f"aten.{name}": getattr(place, name.partition(".")[0])
        for name in listed.split()
        if hasattr(place, name.partition(".")[0])
    }


QUICK: Mapping[str, Function] = {
    **_named(_FUNCTIONS, torch._C._VariableFunctions),
    **_named(_NEURAL, torch._C._nn),
}
"""By the names of the list; an op that this torch has no function for is left out."""

_RENAMED = frozenset({"self", "input"})
"""The parser calls `self` "input"; a graph that names it keeps the overload."""


def quick(name: str, kwargs: Mapping[str, object]) -> Function | None:
    """The function to call instead of the overload `name`; None if there is none."""
    found = QUICK.get(name)
    return found if found is not None and not _RENAMED & kwargs.keys() else None
