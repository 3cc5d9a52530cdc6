"""The MLP in Triton's Python backend. mlp.npz lies beside it.

What Triton hands over together runs as one call: with its dynamic batcher on, that is a
batch; without, it is a request at a time.
"""

from pathlib import Path
from typing import Any

import torch
import triton_python_backend_utils as pb
from shared_mlp import load


class TritonPythonModel:
    """What the backend looks for."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the weights."""
        self._model = load(Path(__file__).parent / "mlp.npz")

    def execute(self, requests: list[Any]) -> list[Any]:
        """One forward for all that came."""
        arrays = [
            torch.from_numpy(pb.get_input_tensor_by_name(each, "x").as_numpy())
            for each in requests
        ]
        with torch.inference_mode():
            rows = arrays[0] if len(arrays) == 1 else torch.cat(arrays)
            outputs = self._model(rows).split([len(array) for array in arrays])
        return [
            pb.InferenceResponse([pb.Tensor("output", output.numpy())])
            for output in outputs
        ]
