"""Inference messages <-> the engine's requests and answers.

Owns: what a ModelInferRequest says, what is wrong with it before a model is known, and
how an Answer is written. Must not: know models (runtime/conformance.py), gRPC, or run
anything. Refusals use Triton's texts where it has one: clients match on them.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

from loader.names import NAME_RULE, VERSION_RULE, valid_name, valid_version
from protos import open_inference_pb2 as pb
from runtime.contents import (
    CARRIES,
    FIELD,
    ITEMSIZE,
    Part,
    Piece,
    Pieces,
    from_values,
    parts_of,
)
from runtime.datatypes import RAW_ONLY
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
    # What is remembered must not grow with what somebody sends.
    if len(model) + len(version) < 512 and _is_address(model, version):
        return
    if not valid_name(model):
        raise BadRequest(f"invalid model name: it must be {NAME_RULE}")
    raise BadRequest(
        "failed to get model version from specified version string, "
        f"version should be {VERSION_RULE}"
    )


@lru_cache(maxsize=4096)
def _is_address(model: str, version: str) -> bool:
    return valid_name(model) and (not version or valid_version(version))


def decode(message: pb.ModelInferRequest, deadline: float | None = None) -> Request:
    """What a request asks, as tensors; BadRequest if its own parts disagree."""
    model, version = message.model_name, message.model_version
    check_address(model, version)
    inputs, raws, outputs = message.inputs, message.raw_input_contents, message.outputs
    if len(inputs) > MAX_TENSORS:
        raise BadRequest(f"more than {MAX_TENSORS} inputs for model '{model}'")
    return Request(
        model=model,
        inputs=Pieces(_raw(model, inputs, raws) if raws else _typed(model, inputs)),
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
    named = parts_of(answer.outputs)
    raw = raw or any(part.datatype in RAW_ONLY for _, part in named)
    _check_size(answer.model, named, raw, limit)
    heads = tuple([(name, part[0], part[1].shape) for name, part in named])
    response = pb.ModelInferResponse.FromString(
        _frame(answer.model, answer.version, answer.temperature, heads)
    )
    response.id = id
    if raw:
        # tobytes: row-major, whatever the strides are.
        response.raw_output_contents.extend([part[1].tobytes() for _, part in named])
        return response
    for output, (_, part) in zip(response.outputs, named, strict=True):
        values = getattr(output.contents, FIELD[part.datatype])
        values.extend(part.array.ravel().tolist())
    return response


@lru_cache(maxsize=4096)
def _frame(
    model: str,
    version: str,
    temperature: str,
    heads: tuple[tuple[str, str, tuple[int, ...]], ...],
) -> bytes:
    """All of a response but its id and its numbers, as the wire has it: reading it back
    takes a third of the time that setting a dozen fields from Python does."""
    response = pb.ModelInferResponse(model_name=model, model_version=version)
    # Clients ignore parameters they do not know; demo and benches split latency by it.
    response.parameters[TEMPERATURE].string_param = temperature
    for name, datatype, shape in heads:
        response.outputs.add(name=name, datatype=datatype, shape=shape)
    return response.SerializeToString()


def _check_size(
    model: str, named: Sequence[tuple[str, Part]], raw: bool, limit: int
) -> None:
    """An expanded tensor has few bytes until it is written, and that is done on the
    event loop. A typed element takes a byte at least."""
    size = sum([part[1].nbytes if raw else part[1].size for _, part in named])
    if size > limit:
        raise AnswerTooLarge(
            f"the outputs of model '{model}' take {size} bytes, "
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
) -> dict[str, Piece]:
    if len(raws) > len(inputs):
        raise BadRequest(
            f"expected {len(inputs)} raw_input_contents but got {len(raws)} "
            f"for model '{model}'"
        )
    pieces: dict[str, Piece] = {}
    for tensor, raw in zip(inputs, raws, strict=False):
        name, datatype, shape, size = _claimed(model, tensor, pieces)
        if tensor.HasField("contents"):
            raise BadRequest(
                "contents field must not be specified when using "
                f"raw_input_contents for '{name}' for model '{model}'"
            )
        if size != len(raw):
            raise _size_mismatch(model, tensor, size, len(raw))
        pieces[name] = Piece(datatype, shape, raw)
    if len(raws) < len(inputs):
        raise _no_data(model, inputs[len(raws)].name)
    return pieces


def _typed(model: str, inputs: Sequence[_Input]) -> dict[str, Piece]:
    pieces: dict[str, Piece] = {}
    for tensor in inputs:
        name, datatype, shape, size = _claimed(model, tensor, pieces)
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
        pieces[name] = filled
    return pieces


def _claimed(
    model: str, tensor: _Input, seen: dict[str, Piece]
) -> tuple[str, str, tuple[int, ...], int]:
    """Name, datatype, shape, and the bytes they need, before anything is allocated."""
    name, datatype = tensor.name, tensor.datatype
    # One more than is taken: it is refused, and a million more cost nothing.
    shape = tuple(tensor.shape[: MAX_RANK + 1])
    if name in seen:
        raise BadRequest(f"input '{name}' already exists in request")
    # What is remembered must not grow with what somebody sends.
    brief = len(datatype) < 8 and len(shape) <= MAX_RANK
    size = _size(datatype, shape) if brief else None
    if size is None:
        raise _impossible(model, name, datatype, shape)
    return name, datatype, shape, size


@lru_cache(maxsize=4096)
def _size(datatype: str, shape: tuple[int, ...]) -> int | None:
    """Bytes of such a tensor; None if there can be none. Few are ever asked for."""
    itemsize = ITEMSIZE.get(datatype)
    if itemsize is None or (shape and min(shape) < 0):
        return None
    elements = math.prod(shape)
    if (elements or math.prod(size or 1 for size in shape)) > MAX_ELEMENTS:
        return None
    return elements * itemsize


def _impossible(
    model: str, name: str, datatype: str, shape: tuple[int, ...]
) -> BadRequest:
    """Why `_size` knows no size."""
    if datatype not in ITEMSIZE:
        known = "not supported" if datatype == "BYTES" else "unknown"
        return BadRequest(
            f"inference input '{name}' data-type is '{datatype}' "
            f"for model '{model}', which is {known}"
        )
    if len(shape) > MAX_RANK:
        return BadRequest(
            f"input '{name}' for model '{model}' has more than {MAX_RANK} dimensions"
        )
    if shape and min(shape) < 0:
        return BadRequest(
            f"input '{name}' for model '{model}' has a negative dimension: "
            f"{list(shape)}"
        )
    return BadRequest(f"the shape of input '{name}' for model '{model}' overflows")


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
