"""The dtypes of a safetensors file, as torch has them.

Owns: that table. Must not: be needed by whatever only moves bytes (loader/header.py has
their sizes): a process that does needs no torch.
"""

import torch

DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
"""Dense, whole-byte dtypes only: those of `loader.header.ITEMSIZE`."""
