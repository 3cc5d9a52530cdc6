"""Tensors <-> parts of a message: small ones inside it, large ones in shared memory.

Owns: that choice, and what a part must be to become a tensor. Must not: know models.

Up to INLINE bytes a copy through the socket costs no more than the bookkeeping of a
stretch of shared memory; from 64 KiB on it costs 5 to 15 times as much (measured:
docs/decisions/0015).
"""

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch

from runtime.datatypes import NAMES, TORCH
from runtime.link.memory import Region
from runtime.link.messages import Part

INLINE = 16 << 10

# numpy knows no bfloat16: its bits travel as int16. A bool is a byte.
_NUMPY: Mapping[str, np.dtype[np.generic]] = {
    name: np.dtype(np.int16 if name == "BF16" else str(dtype).removeprefix("torch."))
    for name, dtype in TORCH.items()
}


def packed(name: str, tensor: torch.Tensor, region: Region) -> Part:
    """A part of a message. What lies in `region` has to be freed by and by."""
    datatype, shape = NAMES[tensor.dtype], tuple(tensor.shape)
    bits = tensor.view(torch.int16) if datatype == "BF16" else tensor
    array: npt.NDArray[np.generic] = bits.numpy()
    if array.nbytes <= INLINE:
        return Part(name, datatype, shape, array.tobytes())
    start = region.take(array.nbytes)
    if start is None:
        return Part(name, datatype, shape, array.tobytes())
    # One copy, whatever the strides are.
    there = np.ndarray(array.shape, array.dtype, region.bytes, start)
    np.copyto(there, array)
    return Part(name, datatype, shape, (start, array.nbytes))


def unpacked(part: Part, region: Region, copy: bool) -> torch.Tensor:
    """The tensor. Without `copy` a large one is a view of the region: it is good until
    its sender frees it. ValueError: the part contradicts itself."""
    dtype = _NUMPY.get(part.datatype)
    if dtype is None:
        raise ValueError("a message has a tensor of no known datatype")
    data: memoryview | bytearray
    if isinstance(part.data, bytes):
        data = bytearray(part.data)
    else:
        data = region.look(*part.data)
        if copy:
            data = bytearray(data)
    if min(part.shape, default=0) < 0 or math.prod(part.shape) * dtype.itemsize != len(
        data
    ):
        raise ValueError("a message has a tensor of another size than its shape")
    array: npt.NDArray[np.generic] = np.ndarray(part.shape, dtype, data)
    tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if part.datatype == "BF16" else tensor


def stretches(parts: list[Part]) -> list[int]:
    """Where those that lie in shared memory start."""
    return [part.data[0] for part in parts if not isinstance(part.data, bytes)]
