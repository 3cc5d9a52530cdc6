import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from protos import open_inference_pb2 as pb
from runtime.contents import SHARED_FROM
from runtime.datatypes import NAMES, RAW_ONLY, TORCH
from runtime.engine import Answer
from runtime.errors import AnswerTooLarge, BadRequest
from runtime.wire import MAX_TENSORS, decode, encode, wants_raw

TYPED_FIELD = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}


def request_of(**more):
    return pb.ModelInferRequest(model_name="m", **more)


def raw_request(datatype, shape, raw, name="x"):
    message = request_of(raw_input_contents=[raw])
    message.inputs.add(name=name, datatype=datatype, shape=shape)
    return message


def typed_request(datatype, shape, field, values):
    message = request_of()
    tensor = message.inputs.add(name="x", datatype=datatype, shape=shape)
    getattr(tensor.contents, field).extend(values)
    return message


def refusal(message):
    with pytest.raises(BadRequest) as caught:
        decode(message)
    return caught.value.message


def answered(tensor, raw=True, id=""):
    return encode(Answer("m", "3", [("y", tensor)], "hit"), raw=raw, id=id)


# ---- there and back ---------------------------------------------------------------

shapes = st.lists(st.integers(0, 4), max_size=4).map(tuple)


@given(st.sampled_from(sorted(TORCH)), shapes, st.data())
def test_raw_bytes_survive_decode_and_encode(datatype, shape, data):
    dtype = TORCH[datatype]
    size = int(np.prod(shape, dtype=int)) * dtype.itemsize
    raw = data.draw(st.binary(min_size=size, max_size=size))
    if datatype == "BOOL":
        raw = bytes(byte & 1 for byte in raw)
    tensor = decode(raw_request(datatype, shape, raw)).inputs["x"]
    assert tensor.dtype == dtype
    assert tensor.shape == shape
    response = answered(tensor)
    assert response.raw_output_contents[0] == raw
    assert response.outputs[0].datatype == datatype
    assert tuple(response.outputs[0].shape) == shape
    assert not response.outputs[0].HasField("contents")


def values_of(datatype):
    if datatype == "BOOL":
        return st.booleans()
    if datatype.startswith("FP"):
        return st.floats(width=int(datatype[2:]), allow_nan=False)
    info = torch.iinfo(TORCH[datatype])
    high = 2**64 - 1 if datatype == "UINT64" else info.max
    return st.integers(info.min, high)


@given(st.sampled_from(sorted(TYPED_FIELD)), st.data())
def test_typed_values_survive_decode_and_encode(datatype, data):
    values = data.draw(st.lists(values_of(datatype), min_size=1, max_size=8))
    field = TYPED_FIELD[datatype]
    tensor = decode(typed_request(datatype, [len(values), 1], field, values)).inputs[
        "x"
    ]
    assert tensor.dtype == TORCH[datatype]
    assert tensor.shape == (len(values), 1)
    response = answered(tensor, raw=False)
    assert list(getattr(response.outputs[0].contents, field)) == values
    assert not response.raw_output_contents


@pytest.mark.parametrize("datatype", sorted(TORCH))
def test_a_large_input_is_shared_and_equal(datatype):
    dtype = TORCH[datatype]
    count = SHARED_FROM // dtype.itemsize
    raw = bytes(i % 2 for i in range(SHARED_FROM))
    tensor = decode(raw_request(datatype, [count], raw)).inputs["x"]
    assert tensor.dtype == dtype
    if datatype == "BOOL":
        assert tensor.tolist()[:4] == [False, True, False, True]
    else:
        assert torch.equal(
            tensor.view(torch.uint8), torch.tensor([0, 1] * (SHARED_FROM // 2)).byte()
        )


def test_a_large_input_costs_no_second_copy():
    size = 8 << 20
    message = raw_request("FP32", [size // 4], bytes(size))
    tracemalloc.start()
    try:
        tensor = decode(message).inputs["x"]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert tensor.shape == (size // 4,)
    assert peak < 1.5 * size  # protobuf hands out one copy; a second would be 2.0


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(12.0).reshape(3, 4).T,
        torch.arange(12.0).reshape(3, 4)[:, ::2],
        torch.arange(12.0).to(torch.bfloat16).reshape(3, 4).T,
        torch.arange(3.0).expand(4, 3),
        torch.tensor(5.0),
        torch.tensor(5.0).to(torch.bfloat16),
    ],
)
def test_strides_do_not_show_on_the_wire(tensor):
    raw = answered(tensor).raw_output_contents[0]
    back = torch.frombuffer(bytearray(raw), dtype=tensor.dtype).reshape(tensor.shape)
    assert torch.equal(back, tensor)


def test_bool_bytes_other_than_one_are_true():
    tensor = decode(raw_request("BOOL", [4], b"\x00\x01\x02\xff")).inputs["x"]
    assert tensor.view(torch.uint8).tolist() == [0, 1, 1, 1]  # torch relies on it


def test_nan_and_infinity_pass_through():
    raw = np.array([np.nan, np.inf, -np.inf], np.float32).tobytes()
    tensor = decode(raw_request("FP32", [3], raw)).inputs["x"]
    assert answered(tensor).raw_output_contents[0] == raw


def test_the_request_says_what_it_says():
    message = raw_request("FP32", [1], bytes(4))
    message.model_version = "3"
    message.id = "r-1"
    message.outputs.add(name="b")
    message.outputs.add(name="a")
    request = decode(message, deadline=12.5)
    assert (request.model, request.version, request.id) == ("m", "3", "r-1")
    assert request.outputs == ("b", "a")
    assert request.deadline == 12.5


def test_the_response_says_what_it_says():
    response = answered(torch.zeros(2), id="r-1")
    assert response.model_name == "m"
    assert response.model_version == "3"
    assert response.id == "r-1"
    assert response.outputs[0].name == "y"


# ---- raw or typed -----------------------------------------------------------------


def test_an_answer_is_raw_if_the_request_was():
    assert wants_raw(raw_request("FP32", [1], bytes(4)))
    assert not wants_raw(typed_request("FP32", [1], "fp32_contents", [1.0]))
    assert wants_raw(request_of())


@pytest.mark.parametrize("wanted", [True, False])
def test_the_request_may_say_how_it_wants_its_answer(wanted):
    for message in (
        raw_request("FP32", [1], bytes(4)),
        typed_request("FP32", [1], "fp32_contents", [1.0]),
    ):
        message.parameters["binary_data_output"].bool_param = wanted
        assert wants_raw(message) is wanted


def test_it_must_say_so_with_a_bool():
    message = raw_request("FP32", [1], bytes(4))
    message.parameters["binary_data_output"].string_param = "yes"
    with pytest.raises(BadRequest, match="expected bool_param"):
        wants_raw(message)


@pytest.mark.parametrize("datatype", sorted(RAW_ONLY))
def test_half_floats_are_always_raw_and_so_is_all_beside_them(datatype):
    half = torch.ones(2, dtype=TORCH[datatype])
    outputs = [("a", torch.zeros(1)), ("b", half)]
    response = encode(Answer("m", "1", outputs, "hit"), raw=False)
    assert len(response.raw_output_contents) == 2
    assert not any(output.HasField("contents") for output in response.outputs)


# ---- refusals ---------------------------------------------------------------------


def two_inputs(raws, names=("a", "b")):
    message = request_of(raw_input_contents=raws)
    for name in names:
        message.inputs.add(name=name, datatype="FP32", shape=[1])
    return message


def with_contents(message):
    message.inputs[0].contents.fp32_contents.append(1.0)
    return message


def with_outputs(names, message=None):
    message = message or raw_request("FP32", [1], bytes(4))
    for name in names:
        message.outputs.add(name=name)
    return message


def classified():
    message = with_outputs(["y"])
    message.outputs[0].parameters["classification"].int64_param = 3
    return message


REFUSALS = {
    "fewer raw entries than inputs": (
        two_inputs([bytes(4)]),
        "unable to find data for input tensor 'b' for model 'm' in request.",
    ),
    "more raw entries than inputs": (
        two_inputs([bytes(4)] * 3),
        "expected 2 raw_input_contents but got 3 for model 'm'",
    ),
    "raw entries without inputs": (
        request_of(raw_input_contents=[b"x"]),
        "expected 0 raw_input_contents but got 1 for model 'm'",
    ),
    "both raw and typed": (
        with_contents(raw_request("FP32", [1], bytes(4))),
        "contents field must not be specified when using raw_input_contents "
        "for 'x' for model 'm'",
    ),
    "fewer bytes than the shape": (
        raw_request("FP32", [1, 4], bytes(8)),
        "input byte size mismatch for input 'x' for model 'm'. Expected 16, got 8 "
        "(FP32[1,4], the shape that the request gives, takes 16 bytes)",
    ),
    "more bytes than the shape": (
        raw_request("FP32", [1, 4], bytes(17)),
        "input byte size mismatch for input 'x' for model 'm'. Expected 16, got 17 "
        "(FP32[1,4], the shape that the request gives, takes 16 bytes)",
    ),
    "fewer values than the shape": (
        typed_request("FP32", [1, 4], "fp32_contents", [1.0, 2.0]),
        "input byte size mismatch for input 'x' for model 'm'. Expected 16, got 8 "
        "(FP32[1,4], the shape that the request gives, takes 16 bytes)",
    ),
    "no values at all": (
        typed_request("FP32", [4], "fp32_contents", []),
        "unable to find data for input tensor 'x' for model 'm' in request.",
    ),
    "values in another field": (
        typed_request("FP32", [1], "int_contents", [1]),
        "unexpected explicit tensor data for input tensor 'x' for model 'm' "
        "of type 'INT32', expected datatype 'FP32'",
    ),
    "a value too large for its type": (
        typed_request("INT8", [1], "int_contents", [128]),
        "input 'x' for model 'm' has a value outside INT8",
    ),
    "a value too small for its type": (
        typed_request("INT16", [1], "int_contents", [-32769]),
        "input 'x' for model 'm' has a value outside INT16",
    ),
    "typed half floats": (
        typed_request("FP16", [1], "fp32_contents", [1.0]),
        "input 'x' for model 'm' of data-type 'FP16' must use raw_input_contents",
    ),
    "typed brain floats": (
        typed_request("BF16", [1], "fp32_contents", [1.0]),
        "input 'x' for model 'm' of data-type 'BF16' must use raw_input_contents",
    ),
    "strings": (
        raw_request("BYTES", [1], b"\x01\x00\x00\x00a"),
        "inference input 'x' data-type is 'BYTES' for model 'm', "
        "which is not supported",
    ),
    "typed strings": (
        typed_request("BYTES", [1], "bytes_contents", [b"a"]),
        "inference input 'x' data-type is 'BYTES' for model 'm', "
        "which is not supported",
    ),
    "a datatype nobody has": (
        raw_request("FP8", [1], b"a"),
        "inference input 'x' data-type is 'FP8' for model 'm', which is unknown",
    ),
    "no datatype": (
        raw_request("", [1], b"a"),
        "inference input 'x' data-type is '' for model 'm', which is unknown",
    ),
    "a negative dimension": (
        raw_request("FP32", [-1, 4], bytes(16)),
        "input 'x' for model 'm' has a negative dimension: [-1, 4]",
    ),
    "two negative dimensions whose product fits": (
        raw_request("FP32", [-2, -2], bytes(16)),
        "input 'x' for model 'm' has a negative dimension: [-2, -2]",
    ),
    "a product that wraps at 64 bits": (
        raw_request("FP32", [2**16, 2**60 + 2], bytes(8)),
        "the shape of input 'x' for model 'm' overflows",
    ),
    "nothing times everything": (
        raw_request("FP32", [0, 2**62, 4], b""),
        "the shape of input 'x' for model 'm' overflows",
    ),
    "300 dimensions": (
        raw_request("FP32", [1] * 300, bytes(4)),
        "input 'x' for model 'm' has more than 16 dimensions",
    ),
    "one input twice": (
        two_inputs([bytes(4)] * 2, names=("a", "a")),
        "input 'a' already exists in request",
    ),
    "one output twice": (
        with_outputs(["y", "z", "y"]),
        "output 'y' already requested for model 'm'",
    ),
    "too many outputs": (
        with_outputs([f"y{i}" for i in range(MAX_TENSORS + 1)]),
        "more than 256 requested outputs for model 'm'",
    ),
    "too many inputs": (
        two_inputs([], names=[f"x{i}" for i in range(MAX_TENSORS + 1)]),
        "more than 256 inputs for model 'm'",
    ),
    "an output as classes": (
        classified(),
        "parameter 'classification' of output 'y' for model 'm' is not supported",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_request_that_contradicts_itself_is_refused(case):
    message, text = REFUSALS[case]
    assert refusal(message) == text


@pytest.mark.parametrize("model", ["", "../etc", "a\nb", "s3://key:secret@bucket"])
def test_a_bad_model_name_is_refused_without_repeating_it(model):
    text = refusal(pb.ModelInferRequest(model_name=model))
    assert text.startswith("invalid model name")
    assert not model or model not in text


@pytest.mark.parametrize("version", ["latest", "1.5", "-1", "01", "9" * 30])
def test_a_version_that_is_no_number_is_refused(version):
    text = refusal(request_of(model_version=version))
    assert text.startswith("failed to get model version from specified version string")


@settings(max_examples=300)
@given(
    st.sampled_from([*TORCH, "BYTES", "FP8", ""]),
    st.lists(st.integers(-(2**63), 2**63 - 1), max_size=20),
    st.lists(st.binary(max_size=40), max_size=3),
    st.lists(st.floats(width=32), max_size=3),
)
def test_whatever_comes_is_a_tensor_or_a_refusal(datatype, shape, raws, floats):
    message = request_of(raw_input_contents=raws)
    tensor = message.inputs.add(name="x", datatype=datatype, shape=shape)
    tensor.contents.fp32_contents.extend(floats)
    try:
        decoded = decode(message).inputs["x"]
    except BadRequest:
        return
    assert decoded.shape == tuple(shape)
    assert NAMES[decoded.dtype] == datatype


def test_a_shape_that_lies_allocates_nothing():
    liars = [
        raw_request("FP64", shape, bytes(64))
        for shape in ([2**40], [2**20, 2**20], [0, 2**40], [3] * 16, [2**47])
    ]
    tracemalloc.start()
    try:
        for message in liars:
            refusal(message)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 64 * 1024


def test_a_shape_of_a_million_dimensions_is_not_copied():
    message = raw_request("FP32", [1] * 1_000_000, bytes(4))
    tracemalloc.start()
    try:
        assert "more than 16 dimensions" in refusal(message)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_an_expanded_answer_is_refused_before_it_is_written():
    """A terabyte of one float: it has four bytes until somebody writes it out."""
    huge = torch.ones(1).expand(2**38)
    answer = Answer("m", "1", [("y", huge)], "hit")
    for raw in (True, False):
        with pytest.raises(AnswerTooLarge, match="more than the 1000 of a message"):
            encode(answer, raw=raw, limit=1000)
        with pytest.raises(AnswerTooLarge):
            encode(answer, raw=raw)


def test_an_answer_of_the_limit_is_written():
    answer = Answer("m", "1", [("y", torch.zeros(10)), ("z", torch.zeros(15))], "hit")
    assert encode(answer, limit=100).raw_output_contents[1] == bytes(60)
    with pytest.raises(AnswerTooLarge):
        encode(answer, limit=99)
