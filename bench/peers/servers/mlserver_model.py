"""The MLP as an MLServer runtime. Its model-settings.json names the weights."""

import torch
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse
from shared_mlp import load


class Mlp(MLModel):  # type: ignore[misc] # not installed where types are checked
    """One model; the call is short, so it runs where it arrives."""

    async def load(self) -> bool:
        """Read the weights."""
        self._model = load(self.settings.parameters.uri)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Rows in, rows out."""
        x = NumpyCodec.decode_input(payload.inputs[0])
        with torch.inference_mode():
            y = self._model(torch.from_numpy(x))
        return InferenceResponse(
            model_name=self.name,
            outputs=[NumpyCodec.encode_output("output", y.numpy())],
        )
