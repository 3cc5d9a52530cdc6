"""One tensor's bytes <-> a torch tensor.

Owns: how each datatype lies in raw contents and in typed contents, here and back. Must
not: know messages, models or names: whoever calls has checked that the bytes are as
many as the shape needs (runtime/wire.py, and the REST front end).

Bytes are touched once where it matters: a small input is copied (cheaper than sharing),
a large one is a read-only view of the message. Graphs never write to their inputs.
"""

import sys
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.dlpack import from_dlpack

from runtime.datatypes import TORCH

SHARED_FROM = 64 * 1024
"""Bytes from which an input is shared with the message instead of copied: below, the
copy costs less than the sharing does (0.7 us against 1.4 us)."""

if sys.byteorder != "little":  # pragma: no cover
    raise ImportError("the wire is little-endian, and so must this host be")

# numpy knows no bfloat16: its bits travel as int16.
_NUMPY: Mapping[str, np.dtype[np.generic]] = {
    name: np.dtype(np.int16 if name == "BF16" else str(dtype).removeprefix("torch."))
    for name, dtype in TORCH.items()
}

ITEMSIZE: Mapping[str, int] = {name: dtype.itemsize for name, dtype in _NUMPY.items()}
"""Bytes of one element."""

FIELD: Mapping[str, str] = {
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
"""The field of typed contents that carries a datatype."""

CARRIES: Mapping[str, str] = {
    "bool_contents": "BOOL",
    "int_contents": "INT32",
    "int64_contents": "INT64",
    "uint_contents": "UINT32",
    "uint64_contents": "UINT64",
    "fp32_contents": "FP32",
    "fp64_contents": "FP64",
    "bytes_contents": "BYTES",
}
"""What a field of typed contents holds by nature."""

Values = Sequence[bool] | Sequence[int] | Sequence[float]


def from_raw(datatype: str, shape: tuple[int, ...], raw: bytes) -> torch.Tensor:
    """The tensor whose row-major little-endian bytes are `raw`."""
    if datatype == "BOOL":
        # A byte other than 0 and 1 is undefined behaviour inside torch.
        return torch.from_numpy(np.asarray(np.ndarray(shape, np.uint8, raw) != 0))
    if len(raw) < SHARED_FROM:
        array: npt.NDArray[np.generic] = np.ndarray(
            shape, _NUMPY[datatype], bytearray(raw)
        )
        tensor = torch.from_numpy(array)
    else:
        # DLPack and not from_numpy, which warns about memory that is read-only.
        tensor = from_dlpack(np.ndarray(shape, _NUMPY[datatype], raw))
    return tensor.view(torch.bfloat16) if datatype == "BF16" else tensor


def from_values(
    datatype: str, shape: tuple[int, ...], values: Values
) -> torch.Tensor | None:
    """The tensor of these values in row-major order; None if one does not fit.

    Small integers travel in 32 bits: 300 is not an INT8, and must not become 44.
    """
    dtype = _NUMPY[datatype]
    wide: npt.NDArray[np.generic] = np.array(values, _NUMPY[CARRIES[FIELD[datatype]]])
    narrow = wide.astype(dtype, copy=False)
    if narrow is not wide and not np.array_equal(narrow, wide):
        return None
    return torch.from_numpy(narrow.reshape(shape))


def to_raw(datatype: str, tensor: torch.Tensor) -> bytes:
    """The tensor's elements in row-major order, whatever its strides are."""
    bits = tensor.view(torch.int16) if datatype == "BF16" else tensor
    return bits.numpy().tobytes()
