"""Tensors in JSON, and in bytes behind it: the Open Inference Protocol's REST bodies.

    {"inputs": [{"name", "datatype", "shape", "data": [...]}], ...}
    ... "parameters": {"binary_data_size": 256} ...}<256 bytes><...>

Owns: the way from a body to the gRPC message that says the same, and from an answer to
a body. Must not: check what runtime/wire.py checks of that message, so that both wires
refuse the same things in the same words; or know HTTP.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch

from protos import open_inference_pb2 as pb
from runtime.contents import from_values, tensor_of, to_raw
from runtime.datatypes import NAMES, TORCH
from runtime.engine import Answer
from runtime.errors import BadRequest
from runtime.wire import MAX_RANK, MAX_TENSORS, TEMPERATURE

# Any: what JSON holds is not known before it is looked at, which is done here only.
Json = Any


@dataclass(frozen=True, slots=True)
class Asked:
    """A request, and how its answer is to be written: `binary` by output name."""

    message: pb.ModelInferRequest
    binary: Mapping[str, bool]
    binary_else: bool


def read(body: bytes, head: int | None, model: str, version: str) -> Asked:
    """The request in a body whose first `head` bytes are JSON; None: all of them."""
    said = _object(_json(body if head is None else body[:head]), "the request")
    message = pb.ModelInferRequest(
        model_name=model, model_version=version, id=_text(said, "id")
    )
    rest = memoryview(b"" if head is None else body)[head or 0 :]
    for given in _objects(said, "inputs"):
        raw, rest = _input(message, given, rest)
        message.raw_input_contents.append(raw)
    if rest:
        raise BadRequest(f"{len(rest)} bytes follow the last input's")
    binary = {}
    for wanted in _objects(said, "outputs"):
        name = _text(wanted, "name")
        message.outputs.add(name=name)
        choice = _parameters(wanted).get("binary_data")
        if choice is not None:
            binary[name] = _boolean(choice, "binary_data")
    every = _parameters(said).get("binary_data_output", False)
    return Asked(message, binary, _boolean(every, "binary_data_output"))


def written(answer: Answer, asked: Asked) -> tuple[bytes, int | None]:
    """The body, and how many bytes of it are JSON if others follow."""
    outputs: list[Json] = []
    raws: list[bytes] = []
    for name, tensor in answer.outputs:
        datatype = NAMES[tensor.dtype]
        shape = list(tensor.shape)
        output: Json = {"name": name, "datatype": datatype, "shape": shape}
        if asked.binary.get(name, asked.binary_else):
            raws.append(to_raw(tensor))
            output["parameters"] = {"binary_data_size": len(raws[-1])}
        else:
            output["data"] = _values(name, tensor)
        outputs.append(output)
    said = {
        "model_name": answer.model,
        "model_version": answer.version,
        **({"id": asked.message.id} if asked.message.id else {}),
        "parameters": {TEMPERATURE: answer.temperature},
        "outputs": outputs,
    }
    head = json.dumps(said, separators=(",", ":")).encode()
    return (b"".join([head, *raws]), len(head)) if raws else (head, None)


# ---- inputs -----------------------------------------------------------------------


def _input(
    message: pb.ModelInferRequest, given: Mapping[str, Json], rest: memoryview
) -> tuple[bytes, memoryview]:
    """One input into the message; its bytes, and what is left of the rest."""
    name, datatype, shape = (
        _text(given, "name"),
        _text(given, "datatype"),
        _shape(given),
    )
    message.inputs.add(name=name, datatype=datatype, shape=shape)
    size = _parameters(given).get("binary_data_size")
    if size is None:
        if "data" not in given:
            raise BadRequest(
                f"unable to find data for input tensor '{name}' for model "
                f"'{message.model_name}' in request."
            )
        return _packed(name, datatype, shape, given["data"]), rest
    if "data" in given:
        raise BadRequest(f"input '{name}' has both data and binary_data_size")
    if type(size) is not int or not 0 <= size <= len(rest):
        raise BadRequest(f"binary_data_size of input '{name}' is not what follows")
    return bytes(rest[:size]), rest[size:]


def _packed(name: str, datatype: str, shape: Sequence[int], data: Json) -> bytes:
    """Values, nested or flat, as the bytes they would be."""
    if datatype not in TORCH:
        return b""  # refused with its message
    values = _flat(name, data)
    allowed = {int} if "INT" in datatype else {int, float}
    if not set(map(type, values)) <= ({bool} if datatype == "BOOL" else allowed):
        raise BadRequest(f"input '{name}' has a value that is no {datatype}")
    wide = datatype if datatype not in ("FP16", "BF16") else "FP32"
    try:
        piece = from_values(wide, (len(values),), values)
    except (OverflowError, ValueError):
        piece = None
    if piece is None:
        raise BadRequest(f"input '{name}' has a value outside {datatype}")
    return to_raw(tensor_of(piece).to(TORCH[datatype]))


def _flat(name: str, data: Json) -> list[Json]:
    for _ in range(MAX_RANK):
        if not isinstance(data, list):
            break
        if not data or type(data[0]) is not list:
            return data
        if set(map(type, data)) != {list}:
            break
        data = list(chain.from_iterable(data))
    raise BadRequest(f"the data of input '{name}' is no array, nested evenly or flat")


def _shape(given: Mapping[str, Json]) -> list[int]:
    shape = given.get("shape")
    if isinstance(shape, list):
        # One more than is taken: it is refused with its message.
        shape = shape[: MAX_RANK + 1]
    if (
        not isinstance(shape, list)
        or not set(map(type, shape)) <= {int}
        or any(not -(2**63) <= size < 2**63 for size in shape)
    ):
        raise BadRequest("the shape of an input must be an array of integers")
    return shape


# ---- outputs ----------------------------------------------------------------------


def _values(name: str, tensor: torch.Tensor) -> list[Json]:
    values: list[Json] = tensor.flatten().tolist()
    if tensor.dtype.is_floating_point and not np.isfinite(values).all():
        raise BadRequest(
            f"output '{name}' has a value that JSON cannot carry (NaN or infinite); "
            "ask for it as binary data"
        )
    return values


# ---- JSON -------------------------------------------------------------------------


def _json(text: bytes) -> Json:
    try:
        return json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise BadRequest("the request is not JSON") from None


def _no_constant(name: str) -> float:
    raise ValueError(name)


def _object(value: Json, what: str) -> Mapping[str, Json]:
    if not isinstance(value, dict):
        raise BadRequest(f"{what} must be an object")
    return value


def _objects(said: Mapping[str, Json], key: str) -> list[Mapping[str, Json]]:
    values = said.get(key, [])
    if not isinstance(values, list):
        raise BadRequest(f"'{key}' must be an array")
    # One more than is taken: it is refused with its message.
    return [_object(value, f"each of '{key}'") for value in values[: MAX_TENSORS + 1]]


def _parameters(said: Mapping[str, Json]) -> Mapping[str, Json]:
    return _object(said.get("parameters", {}), "'parameters'")


def _text(said: Mapping[str, Json], key: str) -> str:
    value = said.get(key, "")
    if not isinstance(value, str) or (not value.isascii() and not _encodable(value)):
        raise BadRequest(f"'{key}' must be a string")
    return value


def _encodable(text: str) -> bool:
    """JSON may hold half a surrogate pair; protobuf may not."""
    return not any(0xD800 <= ord(char) <= 0xDFFF for char in text)


def _boolean(value: Json, what: str) -> bool:
    if not isinstance(value, bool):
        raise BadRequest(f"'{what}' must be true or false")
    return value
