"""Requests of any inputs, and the outputs of their answers.

Owns: both conversions, raw contents only. Must not: send anything.
"""

from collections.abc import Mapping

import torch

from protos import open_inference_pb2 as pb
from runtime.datatypes import NAMES, TORCH


def request_of(model: str, inputs: Mapping[str, torch.Tensor]) -> pb.ModelInferRequest:
    """One predict."""
    message = pb.ModelInferRequest(model_name=model)
    for name, tensor in inputs.items():
        message.inputs.add(
            name=name, datatype=NAMES[tensor.dtype], shape=tuple(tensor.shape)
        )
        message.raw_input_contents.append(tensor.numpy().tobytes())
    return message


def outputs_of(answer: bytes) -> list[torch.Tensor]:
    """The outputs, in the order of the answer."""
    said = pb.ModelInferResponse.FromString(answer)
    return [
        torch.frombuffer(bytearray(raw), dtype=TORCH[output.datatype]).reshape(
            tuple(output.shape)
        )
        for output, raw in zip(said.outputs, said.raw_output_contents, strict=True)
    ]
