"""Whether an answer is the right one.

Owns: reading the only output of an answer and holding it against a reference. Must not:
forgive: an answer without an output, or of another shape, is wrong.
"""

import torch

from protos import open_inference_pb2 as pb

TOLERANCE = 1e-5
"""A batch sums in another order than a single row; a wrong model is off by far more."""


def is_right(answer: bytes, reference: torch.Tensor) -> bool:
    """True if these bytes are a ModelInferResponse that holds the reference's rows."""
    said = pb.ModelInferResponse.FromString(answer)
    if len(said.raw_output_contents) != 1:
        return False
    raw = said.raw_output_contents[0]
    if len(raw) != 4 * reference.numel():
        return False
    given = torch.frombuffer(bytearray(raw), dtype=torch.float32)
    return torch.allclose(given, reference.flatten(), atol=TOLERANCE)
