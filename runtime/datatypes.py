"""The protocol's datatypes and torch's, side by side.

Owns: the names. Must not: convert anything (runtime/wire.py does). BYTES is missing on
purpose: tensors of strings are not served.
"""

from collections.abc import Mapping

import torch

TORCH: Mapping[str, torch.dtype] = {
    "BOOL": torch.bool,
    "UINT8": torch.uint8,
    "UINT16": torch.uint16,
    "UINT32": torch.uint32,
    "UINT64": torch.uint64,
    "INT8": torch.int8,
    "INT16": torch.int16,
    "INT32": torch.int32,
    "INT64": torch.int64,
    "FP16": torch.float16,
    "BF16": torch.bfloat16,
    "FP32": torch.float32,
    "FP64": torch.float64,
}
"""Open Inference Protocol name -> dtype."""

NAMES: Mapping[torch.dtype, str] = {dtype: name for name, dtype in TORCH.items()}
"""dtype -> Open Inference Protocol name."""

RAW_ONLY = frozenset({"FP16", "BF16"})
"""Datatypes for which the protocol has no typed contents."""
