"""Fine-tunes of MiniLM under the KServe SDK's server, run eagerly by transformers.

PORTS, the original's directory (its config) and a store on the command line. The store
is hotset's; what is read of it are the safetensors.

It listens on all addresses, whatever it is told: see bench/peers/loopback.py.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel

from kserve import (  # type: ignore[attr-defined] # mypy sees our manifests
    InferOutput,
    InferRequest,
    InferResponse,
    Model,
    ModelServer,
)

PREFIX = "model."
"""What hotset's wrapper put before the names of the weights."""


class Embedding(Model):  # type: ignore[misc]
    """One fine-tune, in memory from the start."""

    def __init__(self, name: str, original: Path, weights: Path) -> None:
        super().__init__(name)
        config = AutoConfig.from_pretrained(original)
        self._model = AutoModel.from_config(config)  # type: ignore[no-untyped-call]
        state = {
            key.removeprefix(PREFIX): value for key, value in load_file(weights).items()
        }
        # Not strict: constants of hotset's graph are in there, the unused pooler is
        # not. Whatever else were missing, no answer would be right.
        self._model.load_state_dict(state, strict=False)
        self._model.eval()
        self.ready = True

    async def predict(
        self,
        payload: InferRequest,
        headers: dict[str, str] | None = None,
        response_headers: dict[str, str] | None = None,
    ) -> InferResponse:
        """Where it arrives, as the SDK's own examples do."""
        given = {i.name: torch.from_numpy(i.as_numpy()) for i in payload.inputs}
        with torch.inference_mode():
            tokens = self._model(**given).last_hidden_state
            mask = given["attention_mask"].unsqueeze(-1).to(tokens.dtype)
            mean = (tokens * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
            y = torch.nn.functional.normalize(mean, dim=1)
        output = InferOutput(name="embedding", shape=list(y.shape), datatype="FP32")
        output.set_data_from_numpy(y.numpy(), binary_data=True)
        return InferResponse(payload.id, self.name, [output])


def main() -> None:
    """grpc port, http port, the original, the store."""
    grpc_port, http_port, original, store = sys.argv[1:]
    sys.argv[1:] = []  # the SDK reads the command line as well
    models = [
        Embedding(there.name, Path(original), there / "1" / "model.safetensors")
        for there in sorted(Path(store).iterdir())
    ]
    server = ModelServer(http_port=int(http_port), grpc_port=int(grpc_port), workers=1)
    server.start(models)


if __name__ == "__main__":
    main()
