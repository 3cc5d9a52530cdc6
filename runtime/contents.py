"""One tensor's bytes <-> a torch tensor.

Owns: how each datatype lies in raw contents and in typed contents, here and back, and
the two forms in which tensors travel through a predict: `Pieces` on the way in, `Parts`
on the way out. Must not: know messages, models or names: whoever calls has checked that
the bytes are as many as the shape needs (runtime/wire.py, and the REST front end).

Making a tensor costs more than looking at its bytes, and a batch of requests needs one
tensor, not one a request. So both forms keep what is there (bytes, arrays) and are
ordinary collections of tensors to whoever asks for tensors.

Bytes are touched once where it matters: a small input is copied (cheaper than sharing),
a large one is a read-only view of the message. Graphs never write to their inputs.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, TypeAlias, overload

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.dlpack import from_dlpack

from runtime.datatypes import NAMES, TORCH

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
Data = bytes | bytearray | memoryview
Array: TypeAlias = npt.NDArray[np.generic]


class Piece(NamedTuple):
    """A tensor as it came: its elements in row-major order, little-endian."""

    datatype: str
    shape: tuple[int, ...]
    data: Data


class Part(NamedTuple):
    """A tensor as it goes. BF16, which numpy does not know, is its bits as int16."""

    datatype: str
    array: Array


class Pieces(Mapping[str, torch.Tensor]):
    """A request's inputs by name: `pieces`, or tensors to whoever asks for one."""

    __slots__ = ("pieces",)

    def __init__(self, pieces: dict[str, Piece]) -> None:
        self.pieces = pieces

    def __getitem__(self, name: str) -> torch.Tensor:
        return tensor_of(self.pieces[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.pieces)

    def __len__(self) -> int:
        return len(self.pieces)


Named = tuple[str, torch.Tensor]


class Parts(Sequence[Named]):
    """An answer's outputs: `parts` by name, or tensors to whoever asks for one."""

    __slots__ = ("parts",)

    def __init__(self, parts: list[tuple[str, Part]]) -> None:
        self.parts = parts

    @overload
    def __getitem__(self, index: int) -> Named: ...
    @overload
    def __getitem__(self, index: slice) -> list[Named]: ...
    def __getitem__(self, index: int | slice) -> Named | list[Named]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        name, (datatype, array) = self.parts[index]
        tensor = torch.from_numpy(array)
        return name, tensor.view(torch.bfloat16) if datatype == "BF16" else tensor

    def __len__(self) -> int:
        return len(self.parts)


def pieces_of(inputs: Mapping[str, torch.Tensor]) -> dict[str, Piece]:
    """A request's inputs as pieces, whatever they are."""
    if type(inputs) is Pieces:
        return inputs.pieces
    return {name: _piece(tensor) for name, tensor in inputs.items()}


def _piece(tensor: torch.Tensor) -> Piece:
    # A dtype without a name fits no model: nobody will look at its data.
    datatype = NAMES.get(tensor.dtype)
    if datatype is None:
        return Piece("unknown", tuple(tensor.shape), b"")
    array = np.ascontiguousarray(part_of(tensor).array)
    return Piece(datatype, tuple(tensor.shape), _bytes_of(array))


def parts_of(outputs: Sequence[Named]) -> list[tuple[str, Part]]:
    """An answer's outputs as parts, whatever they are."""
    if type(outputs) is Parts:
        return outputs.parts
    return [(name, part_of(tensor)) for name, tensor in outputs]


def part_of(tensor: torch.Tensor) -> Part:
    """A view of the tensor's memory; nothing is copied."""
    datatype = NAMES[tensor.dtype]
    bits = tensor.view(torch.int16) if datatype == "BF16" else tensor
    return Part(datatype, bits.numpy())


def to_raw(tensor: torch.Tensor) -> bytes:
    """The tensor's elements in row-major order, whatever its strides are."""
    return part_of(tensor).array.tobytes()


def array_of(piece: Piece) -> Array:
    """A view of the piece's memory, for a look at its values."""
    return np.ndarray(piece.shape, _NUMPY[piece.datatype], piece.data)


def tensor_of(piece: Piece) -> torch.Tensor:
    """The tensor whose row-major little-endian bytes these are."""
    datatype, shape, data = piece
    if datatype == "BOOL":
        # A byte other than 0 and 1 is undefined behaviour inside torch.
        return torch.from_numpy(np.asarray(np.ndarray(shape, np.uint8, data) != 0))
    if type(data) is not bytearray and len(data) < SHARED_FROM:
        data = bytearray(data)
    array: Array = np.ndarray(shape, _NUMPY[datatype], data)
    # DLPack and not from_numpy, which warns about memory that is read-only.
    writable = type(data) is bytearray
    tensor = torch.from_numpy(array) if writable else from_dlpack(array)
    return tensor.view(torch.bfloat16) if datatype == "BF16" else tensor


def joined(pieces: Sequence[Piece]) -> torch.Tensor:
    """One tensor of them all, one after the other along dimension 0: one copy of the
    bytes and one tensor made, however many they are. Of one datatype and row shape."""
    if len(pieces) == 1:
        return tensor_of(pieces[0])
    datatype, shape, _ = pieces[0]
    rows = sum([piece.shape[0] for piece in pieces])
    data = bytearray().join([piece.data for piece in pieces])
    return tensor_of(Piece(datatype, (rows, *shape[1:]), data))


def split(whole: Sequence[Part], rows: Sequence[int]) -> list[list[Part]]:
    """Each request's share of the outputs: views, and no tensor is made for one."""
    for part in whole:
        if part.array.shape[0] != sum(rows):
            raise ValueError("an output without a row for each of the inputs'")
    shares, at = [], 0
    for count in rows:
        end = at + count
        shares.append([Part(datatype, array[at:end]) for datatype, array in whole])
        at = end
    return shares


def from_values(datatype: str, shape: tuple[int, ...], values: Values) -> Piece | None:
    """The piece of these values in row-major order; None if one does not fit.

    Small integers travel in 32 bits: 300 is not an INT8, and must not become 44.
    """
    dtype = _NUMPY[datatype]
    wide: Array = np.array(values, _NUMPY[CARRIES[FIELD[datatype]]])
    narrow = wide.astype(dtype, copy=False)
    if narrow is not wide and not np.array_equal(narrow, wide):
        return None
    return Piece(datatype, shape, _bytes_of(narrow))


def _bytes_of(array: Array) -> Data:
    """A view of a contiguous array; memoryview cannot cast one without elements."""
    return array.reshape(-1).view(np.uint8).data if array.size else b""
