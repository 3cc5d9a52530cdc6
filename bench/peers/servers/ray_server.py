"""Many models under Ray Serve: one replica, its own multiplexing, an LRU by count.

It runs in Ray's environment; of ours it takes only the protocol's generated code. gRPC
port, HTTP port, folder, models that fit: on the command line. Ray listens on all
addresses: see bench/peers/loopback.py.
"""

import signal
import sys
import threading
from pathlib import Path
from typing import Any

import ray
import torch
from ray import serve
from ray.serve.config import gRPCOptions
from torch import nn

from protos import open_inference_pb2 as pb

TEMPERATURE = "hotset_temperature"
SERVICER = "protos.open_inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server"
OBJECT_STORE = 100 << 20
"""Bytes; nothing here goes through it."""


def read(path: Path) -> nn.Sequential:
    """What torch.save wrote, as a module over these very tensors."""
    state = torch.load(path, weights_only=True)
    layers: list[nn.Module] = []
    with torch.device("meta"):
        for name in sorted(name for name in state if name.endswith(".weight")):
            wide, narrow = state[name].shape
            layers += [nn.Linear(narrow, wide), nn.ReLU()]
        model = nn.Sequential(*layers[:-1]).eval()
    model.load_state_dict(state, assign=True)
    return model


def application(folder: str, room: int) -> Any:
    """The deployment. `room`: models that may be loaded at a time."""

    @serve.deployment(num_replicas=1, max_ongoing_requests=100)
    class Fleet:
        def __init__(self) -> None:
            torch.set_num_threads(1)
            self._loaded = 0

        @serve.multiplexed(max_num_models_per_replica=room)  # type: ignore[untyped-decorator]
        async def _model(self, name: str) -> nn.Sequential:
            self._loaded += 1
            return read(Path(folder) / f"{name}.pt")

        async def ModelInfer(self, request: pb.ModelInferRequest) -> Any:
            before = self._loaded
            model = await self._model(serve.get_multiplexed_model_id())
            (tensor,), (raw,) = request.inputs, request.raw_input_contents
            with torch.inference_mode():
                x = torch.frombuffer(bytearray(raw), dtype=torch.float32)
                y = model(x.reshape(tuple(tensor.shape)))
            answer = pb.ModelInferResponse(
                model_name=request.model_name,
                model_version="1",
                id=request.id,
                outputs=[
                    pb.ModelInferResponse.InferOutputTensor(
                        name="output", datatype="FP32", shape=y.shape
                    )
                ],
                raw_output_contents=[y.numpy().tobytes()],
            )
            # Loads run one at a time under its lock: who waited for one is no hit.
            met = "hit" if self._loaded == before else "miss"
            answer.parameters[TEMPERATURE].string_param = met
            return answer

    return Fleet.bind()  # type: ignore[attr-defined]


def main() -> None:
    """Until SIGTERM."""
    grpc_port, http_port, folder, room, scratch = sys.argv[1:]
    ray.init(
        address="local",
        include_dashboard=False,
        object_store_memory=OBJECT_STORE,
        _temp_dir=scratch,
    )
    serve.start(
        http_options={"host": "127.0.0.1", "port": int(http_port)},
        grpc_options=gRPCOptions(
            port=int(grpc_port), grpc_servicer_functions=[SERVICER]
        ),
    )
    serve.run(application(folder, int(room)), name="fleet", route_prefix="/fleet")
    told = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: told.set())
    told.wait()
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
