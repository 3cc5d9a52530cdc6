"""The MLP under the KServe SDK's model server. PORTS and weights on the command line.

It listens on all addresses, whatever it is told: see bench/peers/loopback.py.
"""

import sys

import torch
from shared_mlp import load

from kserve import (  # type: ignore[attr-defined] # mypy sees our manifests
    InferOutput,
    InferRequest,
    InferResponse,
    Model,
    ModelServer,
)


class Mlp(Model):  # type: ignore[misc]
    """One model, always ready."""

    def __init__(self, weights: str) -> None:
        super().__init__("mlp")
        self._model = load(weights)
        self.ready = True

    async def predict(
        self,
        payload: InferRequest,
        headers: dict[str, str] | None = None,
        response_headers: dict[str, str] | None = None,
    ) -> InferResponse:
        """Short, so it runs where it arrives."""
        with torch.inference_mode():
            y = self._model(torch.from_numpy(payload.inputs[0].as_numpy()))
        output = InferOutput(name="output", shape=list(y.shape), datatype="FP32")
        output.set_data_from_numpy(y.numpy(), binary_data=True)
        return InferResponse(payload.id, self.name, [output])


def main() -> None:
    """grpc port, http port, weights."""
    grpc_port, http_port, weights = sys.argv[1:]
    sys.argv[1:] = []  # the SDK reads the command line as well
    server = ModelServer(http_port=int(http_port), grpc_port=int(grpc_port), workers=1)
    server.start([Mlp(weights)])


if __name__ == "__main__":
    main()
