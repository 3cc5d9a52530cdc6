"""Inference messages <-> the engine's requests and answers.

Owns: what a ModelInferRequest says, what is wrong with it before a model is known, and
how an Answer is written. Must not: know models (runtime/conformance.py), gRPC, or run
anything. Refusals use Triton's texts where it has one: clients match on them.
"""

import math
from collections.abc import Sequence

import torch

from loader.names import NAME_RULE, VERSION_RULE, valid_name, valid_version
from protos import open_inference_pb2 as pb
from runtime.contents import CARRIES, FIELD, ITEMSIZE, from_raw, from_values, to_raw
from runtime.datatypes import NAMES, RAW_ONLY
from runtime.engine import Answer, Request
from runtime.errors import AnswerTooLarge, BadRequest

MAX_TENSORS = 256
"""Inputs or requested outputs of one request; a request with more is an attack on our
loops (Triton CVE-2026-24146), no model has so many."""

MAX_RANK = 16
"""Dimensions of one tensor; numpy ends at 64, models at 6."""

MAX_ELEMENTS = 2**48
"""Elements a shape may claim, zero-sized dimensions left out: keeps strides in 64 bits
whatever the bytes say."""

MAX_ANSWER = 2**31 - 1
"""Bytes of tensors in one answer; protobuf ends here."""

TEMPERATURE = "hotset_temperature"
"""The response parameter that says how the request met its model: hit, wait, miss."""

_Input = pb.ModelInferRequest.InferInputTensor
_Output = pb.ModelInferRequest.InferRequestedOutputTensor


def check_address(model: str, version: str) -> None:
    """Refuse a model name or version that nothing may be looked up by.

    The text does not repeat them: whatever is wrong with them would be in it.
    """
    if not valid_name(model):
        raise BadRequest(f"invalid model name: it must be {NAME_RULE}")
    if version and not valid_version(version):
        raise BadRequest(
            "failed to get model version from specified version string, "
            f"version should be {VERSION_RULE}"
        )


def decode(message: pb.ModelInferRequest, deadline: float | None = None) -> Request:
    """What a request asks, as tensors; BadRequest if its own parts disagree."""
    model, version = message.model_name, message.model_version
    check_address(model, version)
    inputs, raws, outputs = message.inputs, message.raw_input_contents, message.outputs
    if len(inputs) > MAX_TENSORS:
        raise BadRequest(f"more than {MAX_TENSORS} inputs for model '{model}'")
    return Request(
        model=model,
        inputs=_raw(model, inputs, raws) if raws else _typed(model, inputs),
        version=version,
        outputs=_requested(model, outputs) if outputs else (),
        id=message.id,
        deadline=deadline,
    )


def wants_raw(message: pb.ModelInferRequest) -> bool:
    """True if the answer's tensors go raw: like the request's, unless it says how."""
    if message.parameters and "binary_data_output" in message.parameters:
        choice = message.parameters["binary_data_output"]
        if choice.WhichOneof("parameter_choice") != "bool_param":
            raise BadRequest(
                "invalid value type for 'binary_data_output' parameter, "
                "expected bool_param."
            )
        return choice.bool_param
    return bool(message.raw_input_contents) or not message.inputs


def encode(
    answer: Answer, *, id: str = "", raw: bool = True, limit: int = MAX_ANSWER
) -> pb.ModelInferResponse:
    """The answer as a message; each tensor is written once.

    FP16 and BF16 have no typed form, and a response is raw as a whole or not at all.
    Raises AnswerTooLarge before it writes more than `limit` bytes of tensors.
    """
    raw = raw or any(NAMES[tensor.dtype] in RAW_ONLY for _, tensor in answer.outputs)
    _check_size(answer, raw, limit)
    response = pb.ModelInferResponse()
    response.model_name = answer.model
    response.model_version = answer.version
    response.id = id
    # Clients ignore parameters they do not know; demo and benches split latency by it.
    response.parameters[TEMPERATURE].string_param = answer.temperature
    outputs, raws = response.outputs, response.raw_output_contents
    for name, tensor in answer.outputs:
        datatype = NAMES[tensor.dtype]
        output = outputs.add()
        output.name = name
        output.datatype = datatype
        output.shape.extend(tensor.shape)
        if raw:
            raws.append(to_raw(datatype, tensor))
        else:
            values = getattr(output.contents, FIELD[datatype])
            values.extend(tensor.flatten().tolist())
    return response


def _check_size(answer: Answer, raw: bool, limit: int) -> None:
    """An expanded tensor has few bytes until it is written, and that is done on the
    event loop. A typed element takes a byte at least."""
    size = sum(
        tensor.numel() * (tensor.element_size() if raw else 1)
        for _, tensor in answer.outputs
    )
    if size > limit:
        raise AnswerTooLarge(
            f"the outputs of model '{answer.model}' take {size} bytes, "
            f"more than the {limit} of a message"
        )


def _requested(model: str, outputs: Sequence[_Output]) -> tuple[str, ...]:
    if len(outputs) > MAX_TENSORS:
        raise BadRequest(
            f"more than {MAX_TENSORS} requested outputs for model '{model}'"
        )
    names = tuple(output.name for output in outputs)
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise BadRequest(f"output '{twice}' already requested for model '{model}'")
    for output in outputs:
        if output.parameters and "classification" in output.parameters:
            raise BadRequest(
                f"parameter 'classification' of output '{output.name}' "
                f"for model '{model}' is not supported"
            )
    return names


def _raw(
    model: str, inputs: Sequence[_Input], raws: Sequence[bytes]
) -> dict[str, torch.Tensor]:
    if len(raws) > len(inputs):
        raise BadRequest(
            f"expected {len(inputs)} raw_input_contents but got {len(raws)} "
            f"for model '{model}'"
        )
    tensors: dict[str, torch.Tensor] = {}
    for tensor, raw in zip(inputs, raws, strict=False):
        name, datatype, shape, size = _claimed(model, tensor, tensors)
        if tensor.HasField("contents"):
            raise BadRequest(
                "contents field must not be specified when using "
                f"raw_input_contents for '{name}' for model '{model}'"
            )
        if size != len(raw):
            raise _size_mismatch(model, tensor, size, len(raw))
        tensors[name] = from_raw(datatype, shape, raw)
    if len(raws) < len(inputs):
        raise _no_data(model, inputs[len(raws)].name)
    return tensors


def _typed(model: str, inputs: Sequence[_Input]) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for tensor in inputs:
        name, datatype, shape, size = _claimed(model, tensor, tensors)
        if datatype in RAW_ONLY:
            raise BadRequest(
                f"input '{name}' for model '{model}' of data-type '{datatype}' "
                "must use raw_input_contents"
            )
        for field, _ in tensor.contents.ListFields():
            if field.name != FIELD[datatype]:
                raise BadRequest(
                    f"unexpected explicit tensor data for input tensor '{name}' "
                    f"for model '{model}' of type '{CARRIES[field.name]}', "
                    f"expected datatype '{datatype}'"
                )
        values = getattr(tensor.contents, FIELD[datatype])
        if len(values) * ITEMSIZE[datatype] != size:
            got = len(values) * ITEMSIZE[datatype]
            raise (
                _size_mismatch(model, tensor, size, got)
                if got
                else _no_data(model, name)
            )
        filled = from_values(datatype, shape, values)
        if filled is None:
            raise BadRequest(
                f"input '{name}' for model '{model}' has a value outside {datatype}"
            )
        tensors[name] = filled
    return tensors


def _claimed(
    model: str, tensor: _Input, seen: dict[str, torch.Tensor]
) -> tuple[str, str, tuple[int, ...], int]:
    """Name, datatype, shape, and the bytes they need, before anything is allocated."""
    name, datatype, shape = tensor.name, tensor.datatype, tuple(tensor.shape)
    if name in seen:
        raise BadRequest(f"input '{name}' already exists in request")
    itemsize = ITEMSIZE.get(datatype)
    if itemsize is None:
        known = "not supported" if datatype == "BYTES" else "unknown"
        raise BadRequest(
            f"inference input '{name}' data-type is '{datatype}' "
            f"for model '{model}', which is {known}"
        )
    if len(shape) > MAX_RANK:
        raise BadRequest(
            f"input '{name}' for model '{model}' has more than {MAX_RANK} dimensions"
        )
    if shape and min(shape) < 0:
        raise BadRequest(
            f"input '{name}' for model '{model}' has a negative dimension: "
            f"{list(shape)}"
        )
    elements = math.prod(shape)
    if (elements or math.prod(size or 1 for size in shape)) > MAX_ELEMENTS:
        raise BadRequest(f"the shape of input '{name}' for model '{model}' overflows")
    return name, datatype, shape, elements * itemsize


def _size_mismatch(model: str, tensor: _Input, expected: int, got: int) -> BadRequest:
    shape = ",".join(map(str, tensor.shape))
    return BadRequest(
        f"input byte size mismatch for input '{tensor.name}' for model '{model}'. "
        f"Expected {expected}, got {got} ({tensor.datatype}[{shape}], the shape that "
        f"the request gives, takes {expected} bytes)"
    )


def _no_data(model: str, name: str) -> BadRequest:
    return BadRequest(
        f"unable to find data for input tensor '{name}' for model '{model}' in request."
    )
