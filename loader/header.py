"""The header of a safetensors file, read strictly.

Owns: our own check of the header before a byte of weights moves. Must not: read the
weights, or trust the safetensors library to refuse what it does not (it takes duplicate
keys, a leading space, unknown fields, control characters and `..` in names, and 200,000
empty tensors).

What comes out holds: the tensors are sorted by where they lie, none overlaps another,
together they fill the data section to its last byte, and each has exactly the bytes
that its dtype and shape ask for.
"""

import math
import re
from dataclasses import dataclass

from loader.errors import ArtifactRefused
from loader.strictjson import INT64_MAX, array, integer, members, parse, shown, text

PLACE = "model.safetensors"

MAX_HEADER = 16 << 20
"""The library's limit is 100 MB; 10,000 tensors with long names stay below 8 MiB."""
MAX_TENSORS = 10_000
MAX_RANK = 16
MAX_NAME = 512
LENGTH_BYTES = 8

ITEMSIZE = {
    "BOOL": 1, "U8": 1, "I8": 1, "U16": 2, "I16": 2, "U32": 4, "I32": 4, "U64": 8,
    "I64": 8, "F8_E4M3": 1, "F8_E5M2": 1, "F16": 2, "BF16": 2, "F32": 4, "F64": 8,
}  # fmt: skip
"""Bytes of an item. Dense, whole-byte dtypes only."""

WEIGHT_NAME = re.compile(
    rf"(?!.*\.\.)[^\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]{{1,{MAX_NAME}}}"
)
WEIGHT_NAME_MEANT = f"1 to {MAX_NAME} printable characters without '..'"


@dataclass(frozen=True, slots=True)
class Slot:
    """One tensor: bytes `[start, end)` of the data section. `dtype` as the file has
    it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the data section begins in the file, and its tensors in file order."""

    data_start: int
    tensors: tuple[Slot, ...]

    @property
    def file_size(self) -> int:
        """The bytes of the whole file: the tensors fill it to its end."""
        return self.data_start + (self.tensors[-1].end if self.tensors else 0)


def read_header(data: bytes | memoryview, file_size: int) -> Layout:
    """The layout of the file that begins with `data` and has `file_size` bytes.

    `data` must reach at least to the end of the header.
    """
    data_start = _data_start(data, file_size)
    if len(data) < data_start:
        raise ArtifactRefused(PLACE, "the header is cut off")
    header = bytes(data[LENGTH_BYTES:data_start])
    if not header.startswith(b"{"):
        raise ArtifactRefused(PLACE, "the header must begin with '{'")
    place = f"{PLACE}: header"
    document = parse(header, place, MAX_HEADER)
    if not isinstance(document, dict):
        raise ArtifactRefused(place, "must be an object")
    _check_metadata(document.pop("__metadata__", {}))
    if len(document) > MAX_TENSORS:
        raise ArtifactRefused(
            place, f"{len(document)} tensors, the limit is {MAX_TENSORS}"
        )
    slots = [_slot(name, value) for name, value in document.items()]
    slots.sort(key=lambda slot: (slot.start, slot.end))
    _check_cover(slots, file_size - data_start)
    return Layout(data_start, tuple(slots))


def _data_start(data: bytes | memoryview, file_size: int) -> int:
    if file_size < LENGTH_BYTES + 2 or len(data) < LENGTH_BYTES:
        raise ArtifactRefused(PLACE, "too short for a header")
    length = int.from_bytes(data[:LENGTH_BYTES], "little")
    if length > MAX_HEADER:
        raise ArtifactRefused(
            PLACE, f"a header of {length} bytes, the limit is {MAX_HEADER}"
        )
    if LENGTH_BYTES + length > file_size:
        raise ArtifactRefused(PLACE, "the header is longer than the file")
    return LENGTH_BYTES + length


def _check_metadata(value: object) -> None:
    if not isinstance(value, dict) or not all(
        isinstance(item, str) for item in value.values()
    ):
        raise ArtifactRefused(
            f"{PLACE}: '__metadata__'", "must be an object of strings"
        )


def _slot(name: str, value: object) -> Slot:
    text(name, f"{PLACE}: a tensor's name", WEIGHT_NAME, WEIGHT_NAME_MEANT)
    place = f"{PLACE}: tensor {shown(name, 128)}"
    found = members(value, place, ("dtype", "shape", "data_offsets"))
    dtype = found["dtype"]
    if not isinstance(dtype, str) or dtype not in ITEMSIZE:
        raise ArtifactRefused(
            place, f"dtype {shown(dtype)} is not one of {', '.join(ITEMSIZE)}"
        )
    shape = tuple(
        integer(dim, f"{place}: shape", 0, INT64_MAX)
        for dim in array(found["shape"], f"{place}: shape", MAX_RANK)
    )
    offsets = array(found["data_offsets"], f"{place}: data_offsets", 2)
    if len(offsets) != 2:
        raise ArtifactRefused(f"{place}: data_offsets", "must be two integers")
    start, end = (
        integer(offset, f"{place}: data_offsets", 0, INT64_MAX) for offset in offsets
    )
    # Zeros count as ones here: torch multiplies the other dims of an empty tensor for
    # its strides, and that must not overflow either.
    if math.prod(max(dim, 1) for dim in shape) * ITEMSIZE[dtype] > INT64_MAX:
        raise ArtifactRefused(f"{place}: shape", "its size does not fit 64 bits")
    if end - start != math.prod(shape) * ITEMSIZE[dtype]:
        raise ArtifactRefused(
            f"{place}: data_offsets", "are not as far apart as its dtype and shape say"
        )
    return Slot(name, dtype, shape, start, end)


def _check_cover(slots: list[Slot], size: int) -> None:
    """Sorted slots must follow one another without a gap and end with the file."""
    at = 0
    for slot in slots:
        if slot.start != at:
            wrong = "overlaps the one before" if slot.start < at else "follows a hole"
            raise ArtifactRefused(f"{PLACE}: tensor {shown(slot.name, 128)}", wrong)
        at = slot.end
    if at != size:
        raise ArtifactRefused(
            PLACE, f"the tensors take {at} bytes, the data section has {size}"
        )
