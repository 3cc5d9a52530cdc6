"""Packing: what comes out is what went in, and what cannot be packed says why."""

import errno
import json
import os
import sys
import textwrap
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from loader.graph import Graph, read_graph
from loader.header import read_header
from loader.manifest import read_manifest
from loader.ops import ATEN, ON_SHAPES
from loader.pack import (
    PackRefused,
    export,
    export_pt2,
    load_factory,
    pack,
    pack_pt2,
    write,
)
from loader.pack_hf import pack_hf
from loader.pack_weights import safetensors_bytes

CPU = torch.device("cpu")


class Net(nn.Module):
    """A classifier with everything that normalising takes away."""

    def __init__(self, wide: int = 16) -> None:
        super().__init__()
        self.first = nn.Linear(8, wide)
        self.drop = nn.Dropout(0.5, inplace=True)
        self.norm = nn.BatchNorm1d(wide)
        self.last = nn.Linear(wide, 3)
        self.unused = nn.Linear(99, 99)
        self.register_buffer("scale", torch.full((3,), 2.0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.drop(self.norm(self.first(x)).relu_()).detach()
        return self.last(h) * self.scale + torch.tensor([0.5, 0.25, 0.125])


def _run(directory: Path, **inputs: Tensor) -> dict[str, Tensor]:
    """The packed model's outputs, its weights read by somebody else's library."""
    spec = read_manifest((directory / "model.json").read_bytes(), "m", "1")
    graph = read_graph((directory / "graph.json").read_bytes(), CPU)
    weights = safetensors.torch.load_file(directory / "model.safetensors")
    values = [weights[weight.name] for weight in graph.weights]
    assert graph.inputs == tuple(tensor.name for tensor in spec.inputs)
    with torch.no_grad():
        found = graph(*values, *(inputs[name] for name in graph.inputs))
    return dict(zip(graph.outputs, found, strict=True))


def _ops(text: bytes) -> list[str]:
    return [node["op"] for node in json.loads(text)["nodes"]]


def _function(forward: object) -> nn.Module:
    """A module whose forward is this function of tensors."""
    return type("Function", (nn.Module,), {"forward": lambda _, *x: forward(*x)})()


def test_a_module_is_packed(tmp_path: Path) -> None:
    net = Net()
    packed = pack(net, {"x": torch.randn(1, 8)}, tmp_path / "net" / "3", pin=True)
    assert (packed.spec.name, packed.spec.version) == ("net", "3")
    assert sorted(os.listdir(packed.directory)) == [
        "graph.json",
        "model.json",
        "model.safetensors",
    ]
    assert os.listdir(tmp_path / "net") == ["3"]
    x = torch.randn(7, 8)
    with torch.no_grad():
        expected = net(x)
    assert torch.equal(_run(packed.directory, x=x)["output"], expected)
    (given,), (made,) = packed.spec.inputs, packed.spec.outputs
    assert (given.shape, given.datatype) == ((-1, 8), "FP32")
    assert (made.shape, made.datatype) == ((-1, 3), "FP32")
    assert packed.spec.pin


def test_only_what_the_outputs_need_is_kept() -> None:
    found = export(Net(), {"x": torch.randn(2, 8)})
    assert set(found.weights) == {
        *("first.weight", "first.bias", "norm.weight", "norm.bias"),
        *("norm.running_mean", "norm.running_var", "last.weight", "last.bias"),
        *("scale", "lifted_tensor_0"),
    }
    assert _ops(found.graph_json) == [
        "aten.linear.default",
        "aten.batch_norm.default",
        "aten.relu.default",
        "aten.linear.default",
        "aten.mul.Tensor",
        "aten.add.Tensor",
    ]


def test_one_export_writes_many_models(tmp_path: Path) -> None:
    found = export(Net(), {"x": torch.randn(2, 8)})
    x = torch.randn(3, 8)
    for number in range(1, 4):
        torch.manual_seed(number)
        other = Net().eval()
        other.norm.running_mean.normal_()
        packed = write(found, tmp_path / f"n{number}", weights=other.state_dict())
        with torch.no_grad():
            expected = other(x)
        assert torch.equal(_run(packed.directory, x=x)["output"], expected)
        assert packed.spec.graph.sha256 == found.graph.digest


def test_two_exports_of_an_architecture_share_a_digest() -> None:
    first, second = (export(Net(), {"x": torch.randn(n, 8)}) for n in (2, 5))
    assert first.graph.digest == second.graph.digest
    other = export(Net(17), {"x": torch.randn(2, 8)})
    assert other.graph.digest != first.graph.digest


def test_tensors_lie_on_cache_lines(tmp_path: Path) -> None:
    packed = pack(Net(5), {"x": torch.randn(2, 8)}, tmp_path / "net")
    data = (packed.directory / "model.safetensors").read_bytes()
    layout = read_header(data, len(data))
    assert layout.data_start % 64 == 0
    assert [slot.start % 64 for slot in layout.tensors if slot.name[:5] != "__pad"] == (
        [0] * 10
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_floats_are_packed(dtype: torch.dtype, tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(8, 5), nn.Tanh()).to(dtype)
    packed = pack(net, {"x": torch.randn(2, 8, dtype=dtype)}, tmp_path / "net")
    x = torch.randn(3, 8, dtype=dtype)
    with torch.no_grad():
        assert torch.equal(_run(packed.directory, x=x)["output"], net(x))


def test_every_dtype_survives_the_file() -> None:
    tensors = {
        "bool": torch.tensor([True, False, True]),
        "u16": torch.tensor([1, 65535], dtype=torch.uint16),
        "f8": torch.tensor([1.0, -2.0, 0.5]).to(torch.float8_e4m3fn),
        "bf16": torch.randn(3, 5).to(torch.bfloat16),
        "turned": torch.randn(4, 6).T,
        "scalar": torch.tensor(7),
        "empty": torch.zeros(0, 3),
    }
    loaded = safetensors.torch.load(safetensors_bytes(tensors))
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert loaded[name].shape == tensor.shape
        assert loaded[name].reshape(-1).tolist() == tensor.reshape(-1).tolist()


class Pair(nn.Module):
    """Two inputs, three outputs, a weight under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 4)
        self.back = nn.Linear(4, 10, bias=False)
        self.back.weight = self.table.weight

    def forward(self, ids: Tensor, keep: Tensor) -> dict[str, object]:
        rows = self.table(ids.to(torch.int64)[:, :3])
        scores = self.back(rows.sum(1))
        return {
            "scores": scores,
            "none": None,
            "pair": (scores.argmax(1), keep & (scores.amax(1) > 0)),
        }


def test_several_inputs_and_outputs_and_a_tied_weight(tmp_path: Path) -> None:
    pair = Pair()
    inputs = {
        "keep": torch.tensor([True, False]),
        "ids": torch.randint(0, 10, (2, 3), dtype=torch.int32),
    }
    packed = pack(pair, inputs, tmp_path / "pair", ranges={"ids": (0, 99)})
    assert [(t.name, t.datatype, t.low, t.high) for t in packed.spec.inputs] == [
        ("keep", "BOOL", None, None),
        ("ids", "INT32", 0, 9),
    ]
    assert [t.name for t in packed.spec.outputs] == ["scores", "pair_0", "pair_1"]
    weights = safetensors.torch.load_file(packed.directory / "model.safetensors")
    assert [name for name in weights if name[:5] != "__pad"] == ["table.weight"]
    ids = torch.randint(0, 10, (5, 3), dtype=torch.int32)
    keep = torch.tensor([True] * 5)
    found = _run(packed.directory, keep=keep, ids=ids)
    with torch.no_grad():
        expected = pair(ids, keep)
    assert torch.equal(found["scores"], expected["scores"])
    assert torch.equal(found["pair_1"], expected["pair"][1])


def test_a_free_length_is_tried_at_other_lengths_within_its_limit() -> None:
    module = _function(lambda x: x.cumsum(1) / x.size(1))
    found = export(
        module,
        {"x": torch.randn(2, 6)},
        dynamic={"x": [1]},
        limits={"x": [-1, 7]},
        outputs=["mean"],
    )
    assert found.inputs[0].shape == (-1, -1)
    assert found.inputs[0].max_shape == (-1, 7)
    assert [trial.inputs[0].shape for trial in found.trials] == [(1, 4), (5, 7)]
    assert found.graph.outputs == ("mean",)


def test_without_a_batch_dimension(tmp_path: Path) -> None:
    module = _function(lambda x, y: (x @ y).sum())
    inputs = {"x": torch.randn(3, 4), "y": torch.randn(4, 2)}
    packed = pack(module, inputs, tmp_path / "m", max_batch_size=0)
    assert packed.spec.inputs[0].shape == (3, 4)
    assert packed.spec.outputs[0].shape == ()


def _written(x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    out[:, 1:3] = x[:, :2]
    out[:, 0].add_(x[:, 3])
    view = out.view(-1)
    view.mul_(2)
    out.masked_fill_(out > 1, 0.5)
    out[:] = out.clone() + 1
    return out


def _masked(x: Tensor) -> Tensor:
    with torch.no_grad():
        half = x.half() if x.dtype == torch.float16 else x * 0.5
    with torch.autocast("cpu", enabled=False):
        return half.softmax(-1).masked_fill(x > 1, float("-inf"))


SAME = {
    "writes in place": _written,
    "blocks": _masked,
    "memory nobody wrote": lambda x: torch.empty_like(x).copy_(x) + 1,
    "parts": lambda x: torch.cat(
        [p * 2 for p in x.split(2, 1)] + list(x.chunk(2, 1)), 1
    ),
    "sizes": lambda x: x.reshape(x.size(0) * 2, 4).sum(1).reshape(x.size(0), 2),
    "constants": lambda x: (
        x + torch.arange(8) + torch.eye(8)[0] + torch.ones(8, device="cpu")
    ),
    "indices": lambda x: x[:, torch.tensor([3, 1])] + x.flip(1)[:, None, 2],
    "in order": lambda x: torch.sort(x, descending=True)[0] + x.topk(1)[0],
    "nothing": lambda x: x,
    "a row": lambda x: torch.where(x > 0, x, torch.tensor(-1.0)).max(1).values,
    "transposed": lambda x: (
        x.T.contiguous().T.reshape(-1, 2, 4).transpose(1, 2).flatten(1)
    ),
    "einsum": lambda x: torch.einsum("bi,bj->bij", x, x[:, :2]),
    "images": lambda x: nn.functional.interpolate(
        x.reshape(-1, 1, 2, 4), scale_factor=2.0, mode="bilinear"
    ),
    "norms": lambda x: nn.functional.instance_norm(x.reshape(-1, 2, 4)),
    "weight norm": lambda x: torch._weight_norm(x.T @ x, torch.ones(8, 1), 0) @ x.T,
}


@pytest.mark.parametrize("case", SAME)
def test_a_function_stays_the_same(case: str, tmp_path: Path) -> None:
    batched = case != "weight norm"
    packed = pack(
        _function(SAME[case]),
        {"x": torch.randn(2, 8)},
        tmp_path / "m",
        max_batch_size=8 if batched else 0,
    )
    x = torch.randn(6, 8) if batched else torch.randn(2, 8)
    (found,) = _run(packed.directory, x=x).values()
    torch.testing.assert_close(found, SAME[case](x))


def test_every_op_written_is_one_that_is_read() -> None:
    found = export(_function(_written), {"x": torch.randn(2, 8)})
    assert set(_ops(found.graph_json)) <= ATEN | ON_SHAPES.keys()
    assert isinstance(found.graph, Graph)


class Counting(nn.Module):
    """Keeps state."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x + self.calls


class Drifting(nn.Module):
    """Not a function: each call gives something else."""

    calls = 0.0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1.0
        return x + self.calls


def _branch(x: Tensor) -> Tensor:
    return torch.cond(x.sum() > 0, lambda y: y + 1, lambda y: y - 1, (x,))


REFUSED = {
    "a branch by value": (lambda x: x if x.sum() > 0 else -x, "by the values"),
    "a value as a number": (lambda x: x * x.sum().item(), r"aten\.item|cannot trace"),
    "control flow": (_branch, "cond"),
    "random numbers": (torch.rand_like, r"aten\.rand_like"),
    "dropout": (lambda x: nn.functional.dropout(x, 0.5, True), "drops at random"),
    "an op not listed": (lambda x: torch.linalg.qr(x.T @ x)[0] @ x.T, "linalg_qr"),
    "strides": (lambda x: x.as_strided((2, 2), (1, 1)), "as_strided|cannot trace"),
    "a fixed batch": (lambda x: x.reshape(2, 8) + 1, "cannot trace|first dimension"),
    "a batch of its own": (lambda x: x.sum(0), "first dimension must be the batch"),
    "a number": (lambda x: (x, 3), "number"),
    "a string": (lambda x: (x, "text"), "number|str"),
    "sparse": (lambda x: x.to_sparse(), "to_sparse|sparse"),
    "complex": (lambda x: torch.fft.fft(x), "protocol cannot carry"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_packed_is_refused_by_name(case: str, tmp_path: Path) -> None:
    function, reason = REFUSED[case]
    with pytest.raises(PackRefused, match=reason):
        pack(_function(function), {"x": torch.randn(2, 8)}, tmp_path / "store" / "m")
    assert os.listdir(tmp_path) == []


def test_a_module_that_keeps_state_is_refused() -> None:
    with pytest.raises(PackRefused, match="writes to its buffer 'calls'"):
        export(Counting(), {"x": torch.randn(2, 8)})


def test_where_an_op_is_not_allowed_is_said() -> None:
    net = nn.Sequential(nn.Linear(8, 8), _function(torch.rand_like))
    with pytest.raises(PackRefused, match=r"aten\.rand_like\.default.*\(in 1\)"):
        export(net, {"x": torch.randn(2, 8)})


def test_what_differs_from_the_original_never_appears(tmp_path: Path) -> None:
    with pytest.raises(PackRefused, match="output 'output' differs by"):
        pack(Drifting(), {"x": torch.randn(2, 8)}, tmp_path / "m")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("call", range(1, 6))
def test_a_full_disk_leaves_nothing(
    call: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = export(nn.Linear(8, 2), {"x": torch.randn(2, 8)})
    real, calls = os.fsync, []

    def fails(handle: int) -> None:
        calls.append(handle)
        if len(calls) == call:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match="No space left"):
        write(found, tmp_path / "m")
    # The fifth is the parent's, after the model has appeared whole.
    assert os.listdir(tmp_path) == (["m"] if call == 5 else [])


def test_a_version_is_never_overwritten(tmp_path: Path) -> None:
    found = export(nn.Linear(8, 2), {"x": torch.randn(2, 8)})
    before = write(found, tmp_path / "m").directory / "model.safetensors"
    data = before.read_bytes()
    with pytest.raises(PackRefused, match="never overwritten"):
        write(found, tmp_path / "m", weights=nn.Linear(8, 2).state_dict())
    assert before.read_bytes() == data


def _net_without(name: str) -> dict[str, Tensor]:
    return {key: value for key, value in Net().state_dict().items() if key != name}


WEIGHTS = {
    "missing": (_net_without("last.bias"), "weight 'last.bias' is missing"),
    "stranger": (
        {**Net().state_dict(), "more": torch.zeros(1)},
        "weight 'more' is not one of this architecture",
    ),
    "another shape": (Net(17).state_dict(), r"weight 'first.weight' is .*\[17, 8\]"),
    "another dtype": (Net().double().state_dict(), "weight 'first.weight' is .*64"),
}


@pytest.mark.parametrize("case", WEIGHTS)
def test_weights_of_another_architecture_are_refused(case: str, tmp_path: Path) -> None:
    weights, reason = WEIGHTS[case]
    found = export(Net(), {"x": torch.randn(2, 8)})
    with pytest.raises(PackRefused, match=reason):
        write(found, tmp_path / "m", weights=weights)
    assert os.listdir(tmp_path) == []


def test_weights_that_are_one_may_not_differ(tmp_path: Path) -> None:
    inputs = {"ids": torch.zeros(2, 3, dtype=torch.int64), "keep": torch.ones(2) > 0}
    found = export(Pair(), inputs)
    torch.manual_seed(3)
    other = Pair().state_dict()
    write(found, tmp_path / "same", weights=other)
    other["back.weight"] = other["back.weight"] + 1
    with pytest.raises(
        PackRefused, match=r"'table\.weight' and 'back\.weight' are one"
    ):
        write(found, tmp_path / "other", weights=other)


EXAMPLES = {
    "none": ({}, "at least one input"),
    "batches differ": ({"x": torch.zeros(2, 8), "y": torch.zeros(3, 8)}, "must agree"),
    "a scalar": ({"x": torch.zeros(())}, "must agree"),
    "a name with a space": ({"a b": torch.zeros(2, 8)}, "cannot be served"),
}


@pytest.mark.parametrize("case", EXAMPLES)
def test_examples_that_do_not_fit_are_refused(case: str) -> None:
    inputs, reason = EXAMPLES[case]
    with pytest.raises(PackRefused, match=reason):
        export(_function(lambda x, *_: x + 1), inputs)


def test_names_and_ranges_that_do_not_fit_are_refused() -> None:
    module, inputs = _function(lambda x: x + 1), {"x": torch.zeros(2, 8)}
    with pytest.raises(PackRefused, match="1 outputs, 2 names"):
        export(module, inputs, outputs=["a", "b"])
    with pytest.raises(PackRefused, match="it has no range"):
        export(module, inputs, ranges={"x": (0, 1)})
    with pytest.raises(PackRefused, match="limits of 'x'"):
        export(module, inputs, limits={"x": [3]})


def test_a_saved_program_is_packed(tmp_path: Path) -> None:
    net, batch = Net().eval(), torch.export.Dim("batch")
    program = torch.export.export(
        net, (torch.randn(2, 8),), dynamic_shapes=({0: batch},)
    )
    torch.export.save(program, tmp_path / "net.pt2")
    packed = pack_pt2(tmp_path / "net.pt2", tmp_path / "store" / "net" / "1")
    x = torch.randn(4, 8)
    with torch.no_grad():
        expected = net(x)
    assert torch.equal(_run(packed.directory, x=x)["output"], expected)


def test_a_saved_program_of_a_fixed_batch_is_refused(tmp_path: Path) -> None:
    program = torch.export.export(nn.Linear(8, 2), (), {"input": torch.randn(2, 8)})
    torch.export.save(program, tmp_path / "one.pt2")
    with pytest.raises(PackRefused, match=r"'input' is .*max_batch_size=0"):
        export_pt2(tmp_path / "one.pt2")
    found = export_pt2(tmp_path / "one.pt2", max_batch_size=0)
    assert found.inputs[0].shape == (2, 8)
    write(found, tmp_path / "m")


def test_what_is_no_program_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.pt2").write_bytes(b"PK nothing")
    with pytest.raises(PackRefused, match=r"not a \.pt2"):
        export_pt2(tmp_path / "x.pt2")


def test_a_factory_is_found_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "my_factory_of_models.py").write_text(
        textwrap.dedent("""
            import torch

            def alone():
                return torch.nn.Linear(2, 3)

            def with_inputs():
                return torch.nn.Linear(2, 3), {"x": torch.zeros(1, 2)}

            def nothing():
                return 3

            def in_order():
                return torch.nn.Linear(2, 3), (torch.zeros(1, 2),)

            def mistaken():
                raise ValueError("of my own")
        """)
    )
    module, inputs = load_factory("my_factory_of_models:alone")
    assert isinstance(module, nn.Linear)
    assert inputs is None
    _, inputs = load_factory("my_factory_of_models:with_inputs")
    assert list(inputs or ()) == ["x"]
    for name, reason in {
        "my_factory_of_models": "module:factory",
        "my_factory_of_models:nobody": "cannot be imported",
        "nowhere_to_be_found:make": "cannot be imported",
        "my_factory_of_models:nothing": "gave int",
        "my_factory_of_models:in_order": "not tensors by name",
        "my_factory_of_models:mistaken": r"ValueError: of my own \(.*, line 17\)",
    }.items():
        with pytest.raises(PackRefused, match=reason):
            load_factory(name)


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=48,
        vocab_size=99,
        max_position_embeddings=24,
        num_labels=4,
    )
    torch.manual_seed(1)
    model = transformers.BertForSequenceClassification(config)
    model.save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


def _tokens(rows: int, length: int) -> dict[str, Tensor]:
    mask = torch.ones(rows, length, dtype=torch.int64)
    mask[0, length // 2 :] = 0
    return {
        "input_ids": torch.randint(0, 99, (rows, length)),
        "attention_mask": mask,
        "token_type_ids": torch.zeros(rows, length, dtype=torch.int64),
    }


def test_a_hugging_face_classifier_is_packed(bert: Path, tmp_path: Path) -> None:
    import transformers

    packed = pack_hf(bert, "sequence-classification", tmp_path / "store" / "b" / "1")
    assert [(t.name, t.low, t.high, t.max_shape) for t in packed.spec.inputs] == [
        ("input_ids", 0, 98, (-1, 24)),
        ("attention_mask", 0, 1, (-1, 24)),
        ("token_type_ids", 0, 1, (-1, 24)),
    ]
    assert packed.spec.labels == {"task": "sequence-classification"}
    model = transformers.AutoModelForSequenceClassification.from_pretrained(bert).eval()
    tokens = _tokens(3, 24)
    with torch.no_grad():
        expected = model(**tokens).logits
    torch.testing.assert_close(_run(packed.directory, **tokens)["logits"], expected)


def test_a_hugging_face_encoder_gives_means_of_length_one(
    bert: Path, tmp_path: Path
) -> None:
    import transformers

    packed = pack_hf(bert, "feature-extraction", tmp_path / "m")
    model = transformers.AutoModel.from_pretrained(bert).eval()
    tokens = _tokens(2, 13)
    with torch.no_grad():
        states = model(**tokens).last_hidden_state
    means = torch.stack([states[0, :6].mean(0), states[1].mean(0)])
    (found,) = _run(packed.directory, **tokens).values()
    torch.testing.assert_close(found, nn.functional.normalize(means, dim=1))


def test_a_hugging_face_directory_is_only_read_as_data(
    bert: Path, tmp_path: Path
) -> None:
    weights = safetensors.torch.load_file(bert / "model.safetensors")
    (bert / "model.safetensors").unlink()
    torch.save(weights, bert / "pytorch_model.bin")
    with pytest.raises(PackRefused, match="does not load"):
        pack_hf(bert, "feature-extraction", tmp_path / "m")
    with pytest.raises(PackRefused, match="task 'chat'"):
        pack_hf(bert, "chat", tmp_path / "m")
    with pytest.raises(PackRefused, match=r"no config\.json"):
        pack_hf(tmp_path, "feature-extraction", tmp_path / "m")
