import pytest
import torch

from loader.manifest import TensorSpec
from runtime.conformance import conform
from runtime.datatypes import TORCH
from runtime.engine import Request
from runtime.errors import BadRequest
from tests.fake_engine import embedding, linear, simple, spec_of


def refusal(spec, inputs, outputs=()):
    with pytest.raises(BadRequest) as caught:
        conform(Request(spec.name, inputs, outputs=outputs), spec)
    return caught.value.message


def test_tensors_come_in_the_models_order():
    a, b = torch.zeros(2, 16, dtype=torch.int32), torch.ones(2, 16, dtype=torch.int32)
    request = Request("simple", {"INPUT1": b, "INPUT0": a})
    first, second = conform(request, simple().spec)
    assert torch.equal(first, a)
    assert torch.equal(second, b)


LINEAR = linear().spec
SIMPLE = simple().spec
ROW = torch.zeros(1, 16, dtype=torch.int32)


@pytest.mark.parametrize(
    ("spec", "inputs", "outputs", "text"),
    [
        (LINEAR, {}, (), "expected 1 inputs but got 0 inputs for model 'linear'"),
        (
            LINEAR,
            {"x": torch.zeros(1, 64), "zz": torch.zeros(1)},
            (),
            "expected 1 inputs but got 2 inputs for model 'linear'",
        ),
        (
            LINEAR,
            {"zz": torch.zeros(1, 64)},
            (),
            "unexpected inference input 'zz' for model 'linear', "
            "missing required input 'x'",
        ),
        (
            LINEAR,
            {"x": torch.zeros(1, 64, dtype=torch.int32)},
            (),
            "inference input 'x' data-type is 'INT32', "
            "but model 'linear' expects 'FP32'",
        ),
        (
            LINEAR,
            {"x": torch.zeros(1, 5)},
            (),
            "unexpected shape for input 'x' for model 'linear'. "
            "Expected [-1,64], got [1,5]",
        ),
        (
            LINEAR,
            {"x": torch.zeros(64)},
            (),
            "unexpected shape for input 'x' for model 'linear'. "
            "Expected [-1,64], got [64]",
        ),
        (
            LINEAR,
            {"x": torch.zeros(0, 64)},
            (),
            "inference request batch-size must be >= 1 for 'linear'",
        ),
        (
            LINEAR,
            {"x": torch.zeros(9, 64)},
            (),
            "inference request batch-size must be <= 8 for 'linear'",
        ),
        (
            SIMPLE,
            {"INPUT0": ROW, "INPUT1": ROW.repeat(2, 1)},
            (),
            "input 'INPUT1' batch size does not match other inputs for 'simple'",
        ),
        (
            LINEAR,
            {"x": torch.zeros(1, 64)},
            ("y", "q"),
            "unexpected inference output 'q' for model 'linear'",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_tritons_words(spec, inputs, outputs, text):
    assert refusal(spec, inputs, outputs) == text


def test_without_a_batch_dimension_no_dimension_is_limited():
    spec = spec_of("free", [TensorSpec("x", "FP32", (-1, 2))], [], max_batch_size=0)
    (tensor,) = conform(Request("free", {"x": torch.zeros(1000, 2)}), spec)
    assert tensor.shape == (1000, 2)
    assert "Expected [-1,2], got [0,2]" in refusal(spec, {"x": torch.zeros(0, 2)})


def test_a_free_dimension_ends_where_its_table_of_positions_does():
    ids = TensorSpec("ids", "INT64", (-1, -1), max_shape=(-1, 4))
    spec = spec_of("bert", [ids], [])
    assert conform(Request("bert", {"ids": torch.zeros(8, 4, dtype=torch.int64)}), spec)
    assert refusal(spec, {"ids": torch.zeros(1, 5, dtype=torch.int64)}) == (
        "unexpected shape for input 'ids' for model 'bert'. "
        "Expected at most [-1,4], got [1,5]"
    )


def test_a_scalar_input_fits_a_scalar_only():
    spec = spec_of("scalar", [TensorSpec("x", "FP32", ())], [], max_batch_size=0)
    assert conform(Request("scalar", {"x": torch.tensor(1.0)}), spec)
    assert "Expected [], got [1]" in refusal(spec, {"x": torch.zeros(1)})


@pytest.mark.parametrize("value", [-1, 100, 2**40])
def test_an_index_outside_its_table_is_refused(value):
    ids = torch.tensor([[0, 99, value]])
    assert refusal(embedding().spec, {"ids": ids}) == (
        "input 'ids' for model 'embedding' has a value outside its range [0,99]"
    )


def test_an_index_inside_its_table_passes():
    ids = torch.tensor([[0, 99]])
    (found,) = conform(Request("embedding", {"ids": ids}), embedding().spec)
    assert torch.equal(found, ids)


@pytest.mark.parametrize(
    "datatype", ["UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32"]
)
def test_a_range_holds_for_every_integer_type(datatype):
    spec = spec_of("r", [TensorSpec("x", datatype, (-1,), high=9)], [], 0)
    dtype = TORCH[datatype]
    assert conform(Request("r", {"x": torch.tensor([0, 9]).to(dtype)}), spec)
    # -1 as bytes: the biggest of an unsigned type; of a signed one, halve it.
    ones = bytearray(b"\xff" * dtype.itemsize)
    if dtype.is_signed:
        ones[-1] = 0x7F
    biggest = torch.frombuffer(ones, dtype=dtype)
    assert "outside its range [any,9]" in refusal(spec, {"x": biggest})
