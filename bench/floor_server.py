"""The floor: the smallest honest grpc.aio + torch server for one model.

Owns: the yardstick of bench/floor.py, in one file, so that anybody can see that nothing
is left out on purpose. It speaks the same protocol, checks what it is sent, runs the
same MLP and answers in the same form. It has one model, which is always there: no
store, cache, batching, metrics, deadlines or limits. Must not: import hotset (other
than the protocol's generated code), or be made slower or faster than it is natural.

    python -m bench.floor_server --loop asyncio      prints its address as JSON
"""

import argparse
import asyncio
import json
import signal

import grpc
import torch
from torch import nn

from protos import open_inference_pb2 as pb
from protos import open_inference_pb2_grpc as rpc

WIDTH, CLASSES = 64, 10


def mlp(hidden: int = 256, seed: int = 0) -> nn.Sequential:
    """64-hidden-hidden-10, the same weights for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(WIDTH, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, CLASSES),
        ).eval()


class Floor(rpc.GRPCInferenceServiceServicer):
    """ModelInfer and nothing else. The call is short, so it runs where it arrives."""

    def __init__(self, device: str = "cpu") -> None:
        self._device = device
        self._models = {"mlp": mlp().to(device)}

    async def ModelInfer(
        self,
        request: pb.ModelInferRequest,
        context: "grpc.aio.ServicerContext[pb.ModelInferRequest, pb.ModelInferResponse]",  # noqa: E501 - one name
    ) -> pb.ModelInferResponse:
        model = self._models.get(request.model_name)
        if model is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "unknown model")
        (tensor,), (raw,) = request.inputs, request.raw_input_contents
        rows = tensor.shape[0]
        if tensor.datatype != "FP32" or len(raw) != rows * WIDTH * 4:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "unexpected input")
        with torch.inference_mode():
            x = torch.frombuffer(bytearray(raw), dtype=torch.float32)
            y = model(x.reshape(rows, WIDTH).to(self._device)).cpu()
        return pb.ModelInferResponse(
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


async def serve(port: int, device: str) -> None:
    """Until SIGTERM."""
    server = grpc.aio.server()
    # Generated code has no annotations.
    rpc.add_GRPCInferenceServiceServicer_to_server(Floor(device), server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    told = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
    print(json.dumps({"event": "serving", "grpc": f"127.0.0.1:{port}"}), flush=True)
    await told.wait()
    await server.stop(1)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="The yardstick of bench.floor.")
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default="asyncio")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.loop == "uvloop":
        import uvloop

        uvloop.run(serve(options.port, options.device))
    else:
        asyncio.run(serve(options.port, options.device))


if __name__ == "__main__":
    main()
