"""graph.json: a small graph runs; whatever is not exactly right is refused by name."""

import ast
import copy
import gc
import json
import linecache
import pickle
import subprocess
import sys
import weakref
import zipfile
from io import BytesIO
from pathlib import Path

import pytest
import torch
from torch.fx import graph_module

from loader import arguments
from loader import graph as graph_file
from loader.checked import times
from loader.errors import ArtifactRefused
from loader.graph import Graph, read_graph
from loader.header import read_header
from loader.manifest import FileRef, ModelSpec, TensorSpec
from loader.ops import ATEN, CHECKED, FIXED, ON_SHAPES, STRINGS, signature

CPU = torch.device("cpu")

GOOD = {
    "format": 1,
    "weights": [{"name": "lin.weight", "dtype": "float32", "shape": [4, 8]}],
    "inputs": ["x"],
    "nodes": [
        {"name": "rows", "op": "size", "args": [{"input": "x"}, 0]},
        {
            "name": "linear",
            "op": "aten.linear.default",
            "args": [{"input": "x"}, {"weight": "lin.weight"}],
        },
        {
            "name": "full",
            "op": "aten.full.default",
            "args": [[{"node": "rows"}, 4], {"float": "-inf"}],
            "kwargs": {"dtype": {"dtype": "float32"}},
        },
        {
            "name": "max",
            "op": "aten.maximum.default",
            "args": [{"node": "linear"}, {"node": "full"}],
        },
        {"name": "top", "op": "aten.max.dim", "args": [{"node": "max"}, 1]},
        {"name": "best", "op": "getitem", "args": [{"node": "top"}, 1]},
    ],
    "outputs": [
        {"name": "y", "value": {"node": "max"}},
        {"name": "best", "value": {"node": "best"}},
    ],
}


def _read(document: object, device: torch.device = CPU) -> Graph:
    return read_graph(json.dumps(document).encode(), device)


def _with(*nodes: dict, result: str | None = None) -> dict:
    """A graph of one input and one weight whose nodes are these."""
    document = copy.deepcopy(GOOD)
    document["nodes"] = list(nodes)
    value = {"node": result} if result else {"input": "x"}
    document["outputs"] = [{"name": "y", "value": value}]
    return document


def _node(op: str, *args: object, **kwargs: object) -> dict:
    return {"name": "n", "op": op, "args": list(args), "kwargs": kwargs}


X, W = {"input": "x"}, {"weight": "lin.weight"}


def test_a_small_graph_runs() -> None:
    graph = _read(GOOD)
    weight, x = torch.randn(4, 8), torch.randn(3, 8)
    y, best = graph(weight, x)
    torch.testing.assert_close(y, x @ weight.T)
    assert best.tolist() == y.argmax(1).tolist()
    assert graph.inputs == ("x",)
    assert graph.outputs == ("y", "best")
    assert [(w.name, w.dtype, w.shape) for w in graph.weights] == [
        ("lin.weight", torch.float32, (4, 8))
    ]
    assert _read(GOOD).digest == graph.digest


def test_constants_are_made_where_the_model_runs() -> None:
    meta = torch.device("meta")
    graph = _read(GOOD, meta)
    y, _ = graph(torch.empty(4, 8, device=meta), torch.empty(3, 8, device=meta))
    assert y.device == meta


def test_a_graph_knows_its_manifest() -> None:
    graph = _read(GOOD)
    file = FileRef("f", 1, "0" * 64)
    outputs = (TensorSpec("y", "FP32", (-1, 4)), TensorSpec("best", "INT64", (-1,)))
    inputs = (TensorSpec("x", "FP32", (-1, 8)),)
    graph.check(ModelSpec("m", "1", file, file, inputs, outputs, 1))
    with pytest.raises(ArtifactRefused, match=r"model\.json: outputs: .*y, best"):
        graph.check(ModelSpec("m", "1", file, file, inputs, outputs[::-1], 1))


def test_every_kind_of_literal_reaches_its_op() -> None:
    document = _with(
        _node("aten.gelu.default", X, approximate="tanh") | {"name": "a"},
        _node("aten.to.dtype", {"node": "a"}, {"dtype": "float64"}) | {"name": "b"},
        _node("aten.mul.Tensor", {"node": "b"}, 2.5) | {"name": "c"},
        _node("aten.sum.dim_IntList", {"node": "c"}, [1], True) | {"name": "d"},
        _node("aten.clamp.default", {"node": "d"}, None, {"float": "inf"})
        | {"name": "e"},
        _node("aten.index.Tensor", {"node": "e"}, [None, {"node": "i"}])
        | {"name": "f"},
        result="f",
    )
    document["nodes"].insert(5, _node("aten.zeros.default", [1]) | {"name": "z"})
    document["nodes"].insert(
        6,
        _node("aten.to.dtype", {"node": "z"}, {"dtype": "int64"}) | {"name": "i"},
    )
    x = torch.randn(3, 8)
    (y,) = _read(document)(torch.zeros(4, 8), x)
    expected = torch.nn.functional.gelu(x, approximate="tanh").double() * 2.5
    torch.testing.assert_close(y, expected.sum(1, keepdim=True))


def _change(path: str, value: object):
    def change(document: dict) -> None:
        *way, last = [int(k) if k.isdigit() else k for k in path.split("/")]
        for key in way:
            document = document[key]
        document[last] = value

    return change


FORM = {
    "unknown key": (_change("code", "x"), "graph.json: unknown key 'code'"),
    "no nodes": (lambda d: d.pop("nodes"), "graph.json: key 'nodes' is missing"),
    "format": (_change("format", 2), "graph.json: format"),
    "weights an object": (_change("weights", {}), "graph.json: weights"),
    "weight extra": (_change("weights/0/file", "x"), "graph.json: weights[0]: unknown"),
    "weight no dtype": (
        lambda d: d["weights"][0].pop("dtype"),
        "graph.json: weights[0]",
    ),
    "weight dtype": (
        _change("weights/0/dtype", "complex64"),
        "graph.json: weights[0].d",
    ),
    "weight dtype list": (
        _change("weights/0/dtype", []),
        "graph.json: weights[0].dtype",
    ),
    "weight shape": (_change("weights/0/shape", [-1]), "graph.json: weights[0].shape"),
    "weight rank": (
        _change("weights/0/shape", [1] * 17),
        "graph.json: weights[0].shape",
    ),
    "weight name": (_change("weights/0/name", "../w"), "graph.json: weights[0].name"),
    "weight twice": (_change("weights", GOOD["weights"] * 2), "graph.json: weights[1]"),
    "input a number": (_change("inputs/0", 1), "graph.json: inputs[0]"),
    "input empty": (_change("inputs/0", ""), "graph.json: inputs[0]"),
    "input twice": (_change("inputs", ["x", "x"]), "graph.json: inputs[1]"),
    "node a list": (_change("nodes/0", []), "graph.json: node 0: must be an object"),
    "node extra": (_change("nodes/1/target", "x"), "graph.json: node 1: unknown key"),
    "node no op": (lambda d: d["nodes"][1].pop("op"), "graph.json: node 1: key 'op'"),
    "node name": (_change("nodes/1/name", "a;b"), "graph.json: node 1: 'a;b' is not"),
    "node name long": (_change("nodes/1/name", "a" * 129), "graph.json: node 1: 'aaa"),
    "node name twice": (_change("nodes/1/name", "rows"), "graph.json: node 1 'rows'"),
    "op a number": (_change("nodes/1/op", 7), "graph.json: node 1 'linear': must be"),
    "op with spaces": (
        _change("nodes/1/op", "a b"),
        "graph.json: node 1 'linear': 'a b",
    ),
    "args an object": (
        _change("nodes/1/args", {}),
        "graph.json: node 1 'linear': args",
    ),
    "kwargs a list": (
        _change("nodes/1/kwargs", []),
        "graph.json: node 1 'linear': kwarg",
    ),
    "forward reference": (
        _change("nodes/1/args/0", {"node": "full"}),
        "graph.json: node 1 'linear': argument 'input': no node 'full'",
    ),
    "itself": (
        _change("nodes/1/args/0", {"node": "linear"}),
        "graph.json: node 1 'linear': argument 'input': no node 'linear'",
    ),
    "no such weight": (
        _change("nodes/1/args/1", {"weight": "b"}),
        "graph.json: node 1 'linear': argument 'weight': no weight 'b'",
    ),
    "no such input": (
        _change("nodes/1/args/0", {"input": ["x"]}),
        "graph.json: node 1 'linear': argument 'input': no input ['x']",
    ),
    "two references": (
        _change("nodes/1/args/0", {"input": "x", "node": "rows"}),
        "graph.json: node 1 'linear': argument 'input': must be a tensor",
    ),
    "no outputs": (_change("outputs", []), "graph.json: outputs: must have"),
    "output of a number": (
        _change("outputs/0/value", {"node": "rows"}),
        "graph.json: outputs[0].value: must be a tensor",
    ),
    "output of several": (
        _change("outputs/0/value", {"node": "top"}),
        "graph.json: outputs[0].value: must be a tensor",
    ),
    "output a literal": (_change("outputs/0/value", 1), "graph.json: outputs[0].value"),
    "output twice": (
        _change("outputs/1/name", "y"),
        "graph.json: outputs[1]: name 'y'",
    ),
    "output name": (_change("outputs/0/name", "a b"), "graph.json: outputs[0].name"),
}


def _refused(data: bytes) -> str:
    with pytest.raises(ArtifactRefused) as refused:
        read_graph(data, CPU)
    message = refused.value.message
    assert message.isprintable()
    assert len(message) < 500
    return message


@pytest.mark.parametrize("case", FORM)
def test_a_malformed_graph_is_refused(case: str) -> None:
    change, place = FORM[case]
    document = copy.deepcopy(GOOD)
    change(document)
    assert _refused(json.dumps(document).encode()).startswith(place)


I64 = 2**63
CALLS = {
    "as_strided": (_node("aten.as_strided.default", X, [9], [1]), "is not allowed"),
    "set_": (_node("aten.set_.source_Tensor", X, W), "is not allowed"),
    "resize_": (_node("aten.resize_.default", X, [99]), "is not allowed"),
    "from_file": (_node("aten.from_file.default", "/etc/passwd"), "is not allowed"),
    "empty": (_node("aten.empty.memory_format", [9]), "is not allowed"),
    "empty_like": (_node("aten.empty_like.default", X), "is not allowed"),
    "new_empty": (_node("aten.new_empty.default", X, [9]), "is not allowed"),
    "empty_strided": (_node("aten.empty_strided.default", [9], [1]), "is not allowed"),
    "rand": (_node("aten.rand.default", [2]), "is not allowed"),
    "bernoulli": (_node("aten.bernoulli.default", X), "is not allowed"),
    "dropout": (_node("aten.dropout.default", X, 0.5, True), "is not allowed"),
    "add_": (_node("aten.add_.Tensor", X, X), "is not allowed"),
    "an out variant": (_node("aten.add.out", X, X), "is not allowed"),
    "copy_": (_node("aten.copy_.default", W, X), "is not allowed"),
    "item": (_node("aten.item.default", X), "is not allowed"),
    "another namespace": (_node("prims.add.default", X, X), "is not allowed"),
    "a python function": (_node("torch.load", "x"), "is not allowed"),
    "os.system": (_node("os.system", "true"), "is not allowed"),
    "a packet": (_node("aten.add", X, X), "is not allowed"),
    "an attribute": (_node("aten.add.__class__", X), "is not allowed"),
    "too many arguments": (_node("aten.relu.default", X, X), "args: 2 items"),
    "keyword in place": (
        _node("aten.sum.dim_IntList", X, [1], True, None),
        "takes 3 positional",
    ),
    "too few arguments": (_node("aten.linear.default", X), "'weight' is missing"),
    "unknown argument": (_node("aten.relu.default", X, out=X), "unknown key 'out'"),
    "given twice": (_node("aten.relu.default", X, self=X), "unknown key 'self'"),
    "a device": (
        _node("aten.zeros.default", [2], device="cuda"),
        "unknown key 'device'",
    ),
    "pinned memory": (
        _node("aten.zeros.default", [2], pin_memory=True),
        "'pin_memory'",
    ),
    "int for tensor": (_node("aten.relu.default", 1), "'self': must be a tensor"),
    "null for tensor": (_node("aten.relu.default", None), "'self': must be a tensor"),
    "text for tensor": (_node("aten.relu.default", "x"), "'self': must be a tensor"),
    "tensor for int": (_node("aten.select.int", X, X, 0), "'dim': must be an integer"),
    "float for int": (_node("aten.select.int", X, 0.0, 0), "'dim': must be an integer"),
    "true for int": (_node("aten.select.int", X, True, 0), "'dim': must be an integer"),
    "int beyond 64 bits": (
        _node("aten.select.int", X, 0, I64),
        "'index': must be from",
    ),
    "scalar beyond 64 bits": (_node("aten.eq.Scalar", X, I64), "'other': must be from"),
    "int for bool": (_node("aten.argmax.default", X, 1, 1), "'keepdim': must be true"),
    "tensor for scalar": (_node("aten.eq.Scalar", X, X), "'other': must be a number"),
    "true for float": (
        _node("aten.layer_norm.default", X, [8], None, None, True),
        "'eps': must be a number",
    ),
    "a list too deep": (
        _node("aten.reshape.default", X, [[8]]),
        "'shape': must be an in",
    ),
    "null in a list": (
        _node("aten.cat.default", [X, None]),
        "'tensors': must be a tenso",
    ),
    "one for a list": (_node("aten.cat.default", X), "'tensors': must be a list"),
    "several for one": (
        _node("aten.gelu.default", X, approximate=["tanh"]),
        "'approximate'",
    ),
    "another string": (
        _node("aten.gelu.default", X, approximate="fast"),
        "'approximate'",
    ),
    "code as equation": (
        _node("aten.einsum.default", "__import__('os')", [X]),
        "'equation'",
    ),
    "a dtype unknown": (_node("aten.to.dtype", X, {"dtype": "qint8"}), "is no dtype"),
    "a dtype as text": (
        _node("aten.to.dtype", X, "float32"),
        "'dtype': must be an obj",
    ),
    "a dtype's number": (_node("aten.to.dtype", X, 6), "'dtype': must be an object"),
    "a format unknown": (
        _node("aten.clone.default", X, memory_format={"memory_format": "sparse"}),
        "is no memory_format",
    ),
    "a float by name": (_node("aten.eq.Scalar", X, {"float": "1e9"}), "is no float"),
    "training": (
        _node("aten.batch_norm.default", X, *[None] * 4, True, 0.1, 1e-5, False),
        "'training': must be False",
    ),
    "attention dropout": (
        _node("aten.scaled_dot_product_attention.default", X, X, X, None, 0.5),
        "'dropout_p': must be 0",
    ),
    "running statistics": (
        _node(
            "aten.instance_norm.default", X, None, None, W, W, True, 0.1, 1e-5, False
        ),
        "'running_mean': must be None",
    ),
    "lstm trains": (
        _node("aten.lstm.input", X, [X, X], [W], True, 1, 0.5, True, False, True),
        "'train': must be False",
    ),
    "2**31 + 1 zeros": (_node("aten.zeros.default", [2**31 + 1]), "elements"),
    "2**40 zeros": (_node("aten.zeros.default", [2**20, 2**20]), "elements"),
    "2**62 of full": (_node("aten.full.default", [2**31, 2**31], 1), "elements"),
    "arange": (_node("aten.arange.default", 2**40), "elements"),
    "arange of small steps": (
        _node("aten.arange.start_step", 0, 1, 1e-12),
        "elements",
    ),
    "a window of 2**62": (
        _node("aten.max_pool1d.default", X, [2**62]),
        "'kernel_size': holds",
    ),
    "eye": (_node("aten.eye.m", 2**20, 2**20), "elements"),
    "linspace": (_node("aten.linspace.default", 0, 1, 2**40), "elements"),
    "repeat": (_node("aten.repeat.default", X, [2**20, 2**20]), "elements"),
    "one_hot": (_node("aten.one_hot.default", X, 2**40), "elements"),
    "size of a number": (_node("size", 1, 0), "'self': must be a tensor"),
    "item of a tensor": (_node("getitem", X, 0), "several results"),
    "sum of a tensor": (_node("int.add", X, 1), "'left': must be an integer"),
    "sum of a float": (_node("int.add", 1.5, 1), "'left': must be an integer"),
}


@pytest.mark.parametrize("case", CALLS)
def test_a_call_its_op_would_not_take_is_refused(case: str) -> None:
    node, reason = CALLS[case]
    message = _refused(json.dumps(_with(node)).encode())
    assert message.startswith("graph.json: node 0 'n'")
    assert reason in message


TOP = _node("aten.max.dim", X, 1) | {"name": "top"}
ITEMS = {
    "beyond": _node("getitem", {"node": "top"}, 2),
    "negative": _node("getitem", {"node": "top"}, -1),
    "computed": _node("getitem", {"node": "top"}, {"node": "top"}),
    "by name": _node("getitem", index=0, self={"node": "top"}),
}


@pytest.mark.parametrize("case", ITEMS)
def test_results_are_taken_by_a_literal_that_exists(case: str) -> None:
    message = _refused(json.dumps(_with(TOP, ITEMS[case])).encode())
    assert message.startswith("graph.json: node 1 'n'")


def test_sizes_that_outgrow_64_bits_stop() -> None:
    squares = [{"name": "s0", "op": "size", "args": [X, 0]}]
    for index in range(60):
        last = {"node": f"s{index}"}
        squares.append({"name": f"s{index + 1}", "op": "int.mul", "args": [last, last]})
    use = _node("aten.zeros.default", [{"node": "s60"}])
    graph = _read(_with(*squares, use, result="n"))
    with pytest.raises(OverflowError):
        graph(torch.zeros(4, 8), torch.zeros(2, 8))
    assert times(2**31, -(2**32)) == -(2**63)


@pytest.mark.parametrize("name", sorted(ATEN))
def test_nothing_listed_can_write_or_draw(name: str) -> None:
    known = signature(name)
    assert known is not None, "not in this torch"
    _, packet, overload = name.split(".")
    op = getattr(getattr(torch.ops.aten, packet), overload)
    assert known.target is CHECKED.get(name, op)
    schema = op._schema
    assert not schema.is_mutable
    fixed = {argument for op, argument in FIXED if op == name}
    assert fixed <= {param.name for param in known.params}
    tags = set(op.tags)
    if {torch.Tag.nondeterministic_seeded, torch.Tag.maybe_aliasing_or_mutating} & tags:
        assert fixed, "draws or writes unless an argument forbids it"
    assert torch.Tag.data_dependent_output not in tags
    for argument in schema.arguments:
        assert "Generator" not in str(argument.real_type)
    for param in known.params:
        assert param.type != "str" or param.name in STRINGS


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.int64, torch.uint8])
def test_a_division_that_overflows_ends_no_process(dtype: torch.dtype) -> None:
    """In a process of its own, or this one would end with SIGFPE were it not so."""
    least = torch.iinfo(dtype).min
    script = f"""
import torch
from loader.ops import signature
x = torch.tensor([{least}, 7, 100], dtype={dtype})
below = torch.tensor([-1, 2, -1]).to({dtype})
by_tensor = signature("aten.div.Tensor_mode").target
by_number = signature("aten.div.Scalar_mode").target
print(by_tensor(x, below, rounding_mode="trunc").tolist())
print(by_number(x, -1, rounding_mode="trunc").tolist())
print(by_number(x, -1.0, rounding_mode="trunc").tolist()[1:])
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    first, second, third = done.stdout.splitlines()
    if dtype is torch.uint8:
        assert (first, second) == ("[0, 3, 0]", "[0, 0, 0]")
    else:
        assert (first, second) == (f"[{least}, 3, -100]", f"[{least}, -7, -100]")
    assert third == "[-7.0, -100.0]"


HIDDEN, WIDTH = 5, 4


@pytest.mark.parametrize("wrong", ["none", "width", "state", "weight", "few", "dtype"])
@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_a_recurrent_layer_never_reads_past_its_weights(kind: str, wrong: str) -> None:
    layer = getattr(torch.nn, kind.upper())(WIDTH, HIDDEN, 2, bidirectional=True)
    x, state = torch.randn(3, 2, WIDTH), torch.zeros(4, 2, HIDDEN)
    params = [param.detach() for param in layer.parameters()]
    if wrong == "width":
        x = torch.randn(3, 2, WIDTH - 2)
    elif wrong == "state":
        state = torch.zeros(4, 1, HIDDEN)
    elif wrong == "weight":
        params[0] = params[0][:, :2]
    elif wrong == "few":
        params = params[:-1]
    elif wrong == "dtype":
        params[1] = params[1].double()
    hx = [state, state] if kind == "lstm" else state
    call = CHECKED[f"aten.{kind}.input"]
    settings = (True, 2, 0.0, False, True, False)
    if wrong == "none":
        torch.testing.assert_close(call(x, hx, params, *settings)[0], layer(x)[0])
    else:
        with pytest.raises(ValueError, match="recurrent"):
            call(x, hx, params, *settings)


@pytest.mark.parametrize(
    "word",
    [
        *("as_strided", "set_", "resize", "empty", "rand", "from_file", "storage"),
        *("embedding_bag", "col2im", "_weight_norm"),
    ],
)
def test_no_kin_of_the_forbidden_is_listed(word: str) -> None:
    assert [name for name in ATEN | ON_SHAPES.keys() if word in name] == []


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (Path.touch, (self.marker,))


def _pt2(marker: Path) -> bytes:
    """A .pt2 whose weights are to be unpickled: it is a zip with pickles in it."""
    archive = BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("m/archive_format", "pt2")
        file.writestr("m/data/weights/weight_0", pickle.dumps(Evil(marker)))
        file.writestr(
            "m/data/weights/model_weights_config.json",
            json.dumps(
                {"config": {"w": {"path_name": "weight_0", "use_pickle": True}}}
            ),
        )
    return archive.getvalue()


def test_code_in_place_of_data_is_refused_and_never_runs(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    saved = BytesIO()
    torch.save({"w": Evil(marker)}, saved)
    for data in (pickle.dumps(Evil(marker)), saved.getvalue(), _pt2(marker)):
        _refused(data)
        with pytest.raises(ArtifactRefused, match=r"^model\.safetensors"):
            read_header(data, len(data))
    assert not marker.exists()


def test_a_name_that_is_code_never_reaches_the_generated_source() -> None:
    document = copy.deepcopy(GOOD)
    hostile = "x):__import__('os').abort("
    document["inputs"] = [hostile]
    for node in document["nodes"]:
        node["args"] = [{"input": hostile} if arg == X else arg for arg in node["args"]]
    document["weights"][0]["name"] = "w'];import os#"
    document["nodes"][1]["args"][1] = {"weight": "w'];import os#"}
    graph = _read(document)
    assert "os" not in graph.forward.__self__.code
    assert graph(torch.zeros(4, 8), torch.zeros(2, 8))[0].shape == (2, 4)


def test_limits_are_on_nodes_and_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_file, "MAX_NODES", 5)
    assert _refused(json.dumps(GOOD).encode()).startswith("graph.json: nodes: 6 items")
    monkeypatch.setattr(graph_file, "MAX_GRAPH", 100)
    assert "the limit is 100" in _refused(json.dumps(GOOD).encode())


def test_limits_are_on_lists_each_and_together(monkeypatch) -> None:
    _read(GOOD)
    monkeypatch.setattr(arguments, "MAX_ITEMS", 1)
    assert "2 items, the limit is 1" in _refused(json.dumps(GOOD).encode())
    monkeypatch.undo()
    document = copy.deepcopy(GOOD)
    full = document["nodes"][2]
    document["nodes"] += [full | {"name": f"full{n}"} for n in range(4)]
    monkeypatch.setattr(arguments, "MAX_ALL", 10)
    _read(document)
    monkeypatch.setattr(arguments, "MAX_ALL", 9)
    assert "more than 9 items" in _refused(json.dumps(document).encode())


def test_reading_leaves_nothing_behind() -> None:
    gc.collect()
    before = (len(graph_module._loader.eval_cache), len(linecache.cache))
    graph = _read(GOOD)
    assert (len(graph_module._loader.eval_cache), len(linecache.cache)) == before
    module = weakref.ref(graph.forward.__self__)
    bad = copy.deepcopy(GOOD)
    bad["outputs"][1]["value"] = {"node": "nobody"}
    _refused(json.dumps(bad).encode())
    del graph
    gc.collect()
    assert module() is None
    assert not [kept for kept in gc.get_objects() if type(kept) is graph_file._Reader]


SOURCES = [
    path
    for package in ("loader", "runtime", "eviction")
    for path in sorted((Path(__file__).parents[1] / package).rglob("*.py"))
]
CODE_FROM_DATA = {
    "pickle",
    "cloudpickle",
    "joblib",
    "dill",
    "marshal",
    "shelve",
    "sympy",
}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: "/".join(path.parts[-2:]))
def test_no_source_makes_code_from_data(path: Path) -> None:
    # Neither is imported by a server: the one packs, the other compiles, apart.
    exports = path.parent.name == "loader" and (
        path.name.startswith("pack") or path.name == "compile_graph.py"
    )
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute | ast.Name):
            # A setting may be *called* `compile`: a name that is read is what counts.
            names = [ast.unparse(node)] if isinstance(node.ctx, ast.Load) else []
        for name in names:
            assert name.split(".")[0] not in CODE_FROM_DATA
            assert name not in {
                "eval",
                "exec",
                "compile",
                "torch.load",
                "torch.jit.load",
            }
            assert exports or not name.startswith("torch.export")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: "/".join(path.parts[-2:]))
def test_only_the_worker_compiles(path: Path) -> None:
    if not path.name.startswith("compile_"):
        assert "import compile_graph" not in path.read_text()
        assert "loader.compile_graph import" not in path.read_text()
    assert "compile_worker import" not in path.read_text()


def test_the_hot_path_takes_what_was_compiled_and_the_eager_graph_stays():
    graph, weight, x = _read(GOOD), torch.ones(4, 8), torch.ones(2, 8)
    eager, _ = graph(weight, x)
    graph.forward = lambda *tensors: (torch.full((2, 4), 7.0), torch.zeros(2))
    y, _ = graph(weight, x)
    assert (y == 7.0).all()
    assert (graph.eager(weight, x)[0] == eager).all()


def _looking_up(*nodes: dict) -> Graph:
    return _read(_with(*nodes, result=nodes[-1]["name"]))


def _manifest(*bounds: int | None) -> ModelSpec:
    low, high = bounds
    file = FileRef("graph.json", 1, "0" * 64)
    x = TensorSpec("x", "INT64", (-1, 3), low, high)
    return ModelSpec("m", "1", file, file, (x,), (TensorSpec("y", "FP32", (-1,)),), 4)


LOOK_UP = {"name": "out", "op": "aten.embedding.default", "args": [W, X]}
RESHAPED = {"name": "r", "op": "aten.reshape.default", "args": [X, [-1]]}
BY_NAME = {
    "name": "out",
    "op": "aten.embedding.default",
    "args": [],
    "kwargs": {"indices": {"node": "r"}, "weight": W},
}
MOVED = {"name": "r", "op": "aten.add.Tensor", "args": [X, 1]}


@pytest.mark.parametrize("nodes", [(LOOK_UP,), (RESHAPED, BY_NAME)], ids=["x", "same"])
def test_an_input_that_indexes_a_table_must_stay_within_it(nodes):
    graph = _looking_up(*nodes)
    assert graph.rows == {"x": 4}
    graph.check(_manifest(0, 3))
    graph.check(_manifest(1, 2))
    for bounds in ((0, 4), (-1, 3), (None, None)):
        with pytest.raises(ArtifactRefused, match=r"range must lie within \[0,3\]"):
            graph.check(_manifest(*bounds))


def test_a_computed_index_is_not_taken_for_the_input():
    graph = _looking_up(MOVED, BY_NAME)
    assert graph.rows == {}
    graph.check(_manifest(None, None))
