"""Tensors as people write them on a command line: JSON, .npy, .npz.

Owns: reading a value, fitting it to what a model declares, the wire's bytes of it. Must
not: import torch (a request is sent in a moment or not at all), unpickle anything, or
change a value to make it fit.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt

from runtime.commands import Failed

Array = npt.NDArray[np.generic]

DTYPES: Mapping[str, type[np.generic]] = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
    # numpy has no bfloat16: its values are shown, and taken, as float32.
    "BF16": np.float32,
}
"""Open Inference Protocol name -> dtype."""


def read_text(text: str) -> str:
    """The text itself, `@FILE`'s contents, or all of standard input for `-`."""
    if text == "-":
        return sys.stdin.read()
    if not text.startswith("@"):
        return text
    try:
        return Path(text[1:]).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise Failed(f"{text[1:]}: {_why(error)}") from None


def read_value(name: str, text: str) -> Array:
    """`[[1, 2]]`, `@file.json`, `@file.npy`, or array `name` of `@file.npz`."""
    if text.startswith("@") and text.endswith((".npy", ".npz")):
        return _read_numpy(name, Path(text[1:]))
    return as_array(name, _parse(read_text(text)))


def read_values(text: str) -> dict[str, Array]:
    """`{"x": [[1, 2]]}`, or the body of a REST request (`{"inputs": [...]}`)."""
    found = _parse(read_text(text))
    if not isinstance(found, dict):
        raise Failed('the JSON must be an object, like {"x": [[1, 2]]}')
    inputs = found.get("inputs")
    if isinstance(inputs, list):
        return dict(_rest_input(item) for item in inputs)
    return {name: as_array(name, value) for name, value in found.items()}


def as_array(name: str, value: object) -> Array:
    """A JSON value as an array: integers as int64, others as float64 or bool."""
    try:
        array = np.asarray(value)
    except ValueError:
        raise Failed(f"input '{name}': rows differ in length") from None
    if array.dtype.kind not in "biuf":
        raise Failed(f"input '{name}': numbers or booleans, please")
    return cast(Array, array)


def fit(name: str, array: Array, datatype: str, shape: Sequence[int]) -> Array:
    """The array in the datatype and shape that the model declares; Failed if its
    values or its shape are not those."""
    dtype = DTYPES.get(datatype)
    if dtype is None:
        raise Failed(f"input '{name}' is {datatype}, which this command cannot write")
    if not _matches(array.shape, shape):
        raise Failed(
            f"input '{name}' has shape {list(array.shape)}, the model takes "
            f"{list(shape)}{_batch_hint(name, array.shape, shape)}"
        )
    with np.errstate(over="ignore", invalid="ignore"):
        fitted = array.astype(dtype)
    # Fractions may be rounded, that is what FP32 means; anything else would be a lie.
    exact = (
        np.array_equal(np.isinf(fitted), np.isinf(array))
        if fitted.dtype.kind == "f"
        else np.array_equal(fitted, array)
    )
    if not exact:
        raise Failed(f"input '{name}' has values that {datatype} does not have")
    return cast(Array, np.ascontiguousarray(fitted))


def to_bytes(array: Array, datatype: str) -> bytes:
    """Raw contents as the protocol wants them: row-major, little-endian."""
    if datatype != "BF16":
        return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    bits = array.astype("<f4", copy=False).view("<u4").astype(np.uint64)
    # To the nearest, ties to even; a NaN must stay one and not round to infinity.
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(array), 0x7FC0, rounded).astype("<u2").tobytes()


def from_bytes(data: bytes, datatype: str, shape: Sequence[int]) -> Array:
    """The other way."""
    if datatype == "BF16":
        bits = np.frombuffer(data, "<u2").astype("<u4") << 16
        return bits.view("<f4").reshape(shape)
    dtype = DTYPES.get(datatype)
    if dtype is None:
        raise Failed(f"the answer has {datatype}, which this command cannot read")
    return np.frombuffer(data, np.dtype(dtype).newbyteorder("<")).reshape(shape)


def _parse(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Failed(
            f"not JSON: {error}; write values like [[1, 2]], with brackets and quotes "
            "of the shell around them, or @FILE"
        ) from None


def _rest_input(item: object) -> tuple[str, Array]:
    if not isinstance(item, dict) or not isinstance(item.get("name"), str):
        raise Failed('each of "inputs" needs a name, a shape and data')
    name = item["name"]
    try:
        return name, as_array(name, item["data"]).reshape(item["shape"])
    except (KeyError, TypeError, ValueError):
        raise Failed(f"input '{name}' needs data that fill its shape") from None


def _read_numpy(name: str, path: Path) -> Array:
    try:
        found = np.load(path, allow_pickle=False)
        if isinstance(found, np.ndarray):
            return as_array(name, found)
        with found:
            return as_array(name, found[_pick(name, path, found.files)])
    except (OSError, ValueError, EOFError) as error:
        raise Failed(f"{path}: {_why(error)}") from None


def _pick(name: str, path: Path, names: Sequence[str]) -> str:
    """Which array of a file is meant: that of the input's name, or the only one."""
    if name in names:
        return name
    if len(names) == 1:
        return names[0]
    raise Failed(f"{path} has no array '{name}', only {', '.join(names)}")


def _matches(given: Sequence[int], wanted: Sequence[int]) -> bool:
    return len(given) == len(wanted) and all(
        free in (-1, size) for size, free in zip(given, wanted, strict=True)
    )


def _batch_hint(name: str, given: Sequence[int], wanted: Sequence[int]) -> str:
    if wanted[:1] == [-1] and _matches(given, wanted[1:]):
        return "; one row is a batch of one: put it in another pair of brackets"
    return ""


def _why(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
