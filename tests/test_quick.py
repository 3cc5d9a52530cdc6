"""A quick function is the op it stands for, bit by bit."""

import json

import pytest
import torch

from loader.graph import read_graph
from loader.ops import ATEN, CHECKED, FIXED
from loader.quick import QUICK, quick

torch.manual_seed(0)
X = torch.randn(3, 4)
Y = torch.randn(3, 4)
HALF = X.half()
INTS = torch.tensor([[3, -2, 7], [0, 5, 1]])
IMAGE = torch.randn(2, 4, 6, 6)
UNARY = [
    *("relu", "sigmoid", "tanh", "exp", "log", "sqrt", "rsqrt", "neg", "abs", "erf"),
    *("sin", "cos", "square", "gelu", "silu", "hardswish", "hardsigmoid", "hardtanh"),
    *("leaky_relu", "elu", "softplus"),
]
ARITHMETIC = ["add.Tensor", "sub.Tensor", "mul.Tensor", "div.Tensor"]
COMPARED = ["eq", "ne", "lt", "gt", "le", "ge"]

CALLS: dict[str, list] = {
    **{f"{name}.default": [([X.abs() + 0.1], {}), ([HALF], {})] for name in UNARY},
    **{
        name: [
            *([([X, Y], {}), ([X, 2.5], {}), ([X, 2], {}), ([HALF, 2.5], {})]),
            *([([INTS, 2], {}), ([INTS, 2.5], {}), ([INTS, X.new_ones(3)], {})]),
            *([([HALF, torch.ones(())], {}), ([INTS, -1], {})]),
        ]
        for name in ARITHMETIC
    },
    **{f"{name}.Scalar": [([X, 0], {}), ([INTS, 2.5], {})] for name in COMPARED},
    "pow.Tensor_Scalar": [([X, 2], {}), ([X, 0.5], {}), ([INTS, 2], {})],
    "maximum.default": [([X, Y], {})],
    "minimum.default": [([X, Y], {})],
    "mm.default": [([X, Y.t()], {})],
    "bmm.default": [([X[None], Y.t()[None]], {})],
    "matmul.default": [([X, Y.t()], {}), ([X, Y[0]], {}), ([IMAGE, IMAGE], {})],
    "addmm.default": [([Y[:, :3], X, Y.t()], {"beta": 2, "alpha": 0.5})],
    "baddbmm.default": [([Y[None, :, :3], X[None], Y.t()[None]], {})],
    "conv1d.default": [([X[None], torch.randn(2, 3, 2)], {})],
    "conv2d.default": [
        ([IMAGE, torch.randn(3, 4, 2, 2), torch.randn(3), [2, 2], [1, 1]], {}),
        ([IMAGE, torch.randn(4, 1, 3, 3), None, [1, 1], [0, 0], [1, 1], 4], {}),
    ],
    "conv3d.default": [([IMAGE[None], torch.randn(1, 2, 2, 2, 2)], {})],
    "max_pool2d.default": [([IMAGE, [2, 2], [2, 2], [1, 1]], {})],
    "avg_pool2d.default": [([IMAGE, [2, 2]], {}), ([IMAGE, [3, 3], [1, 1]], {})],
    "adaptive_avg_pool2d.default": [([IMAGE, [1, 1]], {})],
    "embedding.default": [([X, torch.tensor([[0, 2]])], {})],
    "batch_norm.default": [
        ([IMAGE, *[torch.rand(4) for _ in range(4)], False, 0.1, 1e-5, False], {})
    ],
    "layer_norm.default": [([X, [4], Y[0], Y[1], 1e-5], {}), ([X, [4]], {})],
    "group_norm.default": [([IMAGE, 2, Y[0], Y[1]], {})],
    "softmax.int": [([X, -1], {}), ([HALF, 1, torch.float32], {})],
    "log_softmax.int": [([X, 0], {})],
    "mean.dim": [([X, [1]], {}), ([X, [0], True], {}), ([X, None], {})],
    "sum.dim_IntList": [([X, [1]], {}), ([INTS, [0], True], {})],
    "amax.default": [([X, [1]], {}), ([X], {})],
    "argmax.default": [([X], {}), ([X, 1], {}), ([X, 1, True], {})],
    "clamp_min.default": [([X, 0], {}), ([INTS, 1], {})],
    "cat.default": [([[X, Y]], {}), ([[X, Y], 1], {})],
    "stack.default": [([[X, Y]], {}), ([[X, Y], -1], {})],
    "transpose.int": [([X, 0, 1], {})],
    "permute.default": [([IMAGE, [0, 2, 3, 1]], {})],
    "reshape.default": [([X, [2, -1]], {})],
    "t.default": [([X], {})],
    "unsqueeze.default": [([X, 1], {})],
    "squeeze.dim": [([X[:1], 0], {})],
    "select.int": [([X, 0, -1], {})],
    "flatten.using_ints": [([IMAGE, 1], {}), ([IMAGE], {}), ([IMAGE, 0, 2], {})],
    "unbind.int": [([X], {}), ([X, 1], {})],
    "where.self": [([X > 0, X, Y], {})],
    "masked_fill.Scalar": [([X, X > 0, -1], {}), ([X, X > 0, float("-inf")], {})],
    "index_select.default": [([X, 0, torch.tensor([2, 0])], {})],
    "gather.default": [([X, 1, torch.tensor([[0], [1], [3]])], {})],
    "linear.default": [([X, Y], {}), ([X, Y, Y[:, 0]], {}), ([IMAGE[..., :4], X], {})],
}


def test_every_quick_function_has_its_calls() -> None:
    assert {f"aten.{name}" for name in CALLS} == QUICK.keys()
    assert QUICK.keys() <= ATEN
    assert not QUICK.keys() & CHECKED.keys()


@pytest.mark.parametrize("name", sorted(CALLS))
def test_both_ways_give_the_same_bits(name: str) -> None:
    packet, overload = name.split(".")
    op = getattr(getattr(torch.ops.aten, packet), overload)
    for args, kwargs in CALLS[name]:
        wanted, got = op(*args, **kwargs), QUICK[f"aten.{name}"](*args, **kwargs)
        several = isinstance(wanted, list | tuple)
        pairs = zip(wanted, got, strict=True) if several else [(wanted, got)]
        for want, have in pairs:
            assert have.dtype == want.dtype
            assert have.stride() == want.stride()
            assert have.numpy().tobytes() == want.numpy().tobytes()


def test_an_argument_by_the_name_of_the_schema_keeps_the_overload() -> None:
    assert quick("aten.relu.default", {"self": 1}) is None
    assert quick("aten.relu.default", {}) is QUICK["aten.relu.default"]
    document = {
        "format": 1,
        "weights": [],
        "inputs": ["x"],
        "nodes": [
            {
                "name": "n",
                "op": "aten.relu.default",
                "args": [],
                "kwargs": {"self": {"input": "x"}},
            }
        ],
        "outputs": [{"name": "y", "value": {"node": "n"}}],
    }
    graph = read_graph(json.dumps(document).encode(), torch.device("cpu"))
    assert torch.equal(graph(torch.tensor([-1.0, 2.0]))[0], torch.tensor([0.0, 2.0]))


def test_what_must_stay_fixed_is_checked_before_it_gets_here() -> None:
    """The reader refuses `training` and the like for either way."""
    fixed = {name for name, _ in FIXED}
    assert fixed & QUICK.keys() <= {"aten.batch_norm.default"}
