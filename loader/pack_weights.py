"""Weights into a safetensors file whose tensors all start on a cache line.

Owns: the order, the padding and the bytes. Must not: check anything but dtypes
(loader/header.py reads the file back), or touch a disk.

The format forbids holes, so what would be a hole is a small U8 tensor named `__pad...`.
With it every tensor starts at a multiple of ALIGNMENT from the first, the data section
does so in the file, and a loader may move the whole section as one run.
"""

import json
from collections.abc import Mapping

import torch

from loader.dtypes import DTYPES
from loader.header import LENGTH_BYTES
from loader.pack_errors import PackRefused

ALIGNMENT = 64
PADDING = "__pad"

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def safetensors_bytes(weights: Mapping[str, torch.Tensor]) -> bytes:
    """The file. Tensors that need no padding come first, each group in given order."""
    header: dict[str, object] = {}
    parts: list[bytes] = []
    at = 0
    sized = [(name, _bytes(name, tensor)) for name, tensor in weights.items()]
    sized.sort(key=lambda pair: len(pair[1]) % ALIGNMENT != 0)
    for index, (name, data) in enumerate(sized):
        tensor = weights[name]
        header[name] = _entry(_NAMES[tensor.dtype], list(tensor.shape), at, len(data))
        parts.append(data)
        at += len(data)
        gap = -at % ALIGNMENT
        if gap and index + 1 < len(sized):
            header[f"{PADDING}{index}"] = _entry("U8", [gap], at, gap)
            parts.append(bytes(gap))
            at += gap
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(LENGTH_BYTES + len(text)) % ALIGNMENT)
    return b"".join([len(text).to_bytes(LENGTH_BYTES, "little"), text, *parts])


def _entry(dtype: str, shape: list[int], at: int, nbytes: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [at, at + nbytes]}


def _bytes(name: str, tensor: torch.Tensor) -> bytes:
    if tensor.layout != torch.strided or tensor.dtype not in _NAMES:
        raise PackRefused(
            f"weight '{name}' is {tensor.dtype} ({tensor.layout}); a weights file "
            f"holds dense tensors of {', '.join(_NAMES.values())}"
        )
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
