"""The MLP behind grpcio's synchronous server: a pool of threads, nothing else.

The twin of bench/floor_server.py, which is the same on grpc.aio. It runs in our own
environment and takes the protocol's generated code and the MLP from there.
"""

import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import torch

from bench.floor_server import WIDTH, mlp
from protos import open_inference_pb2 as pb
from protos import open_inference_pb2_grpc as rpc

THREADS = 8
"""More only take turns at the interpreter."""


class Floor(rpc.GRPCInferenceServiceServicer):
    """ModelInfer and nothing else."""

    def __init__(self) -> None:
        self._models = {"mlp": mlp()}

    def ModelInfer(
        self, request: pb.ModelInferRequest, context: grpc.ServicerContext
    ) -> pb.ModelInferResponse:
        model = self._models.get(request.model_name)
        if model is None:
            context.abort(grpc.StatusCode.NOT_FOUND, "unknown model")
        (tensor,), (raw,) = request.inputs, request.raw_input_contents
        rows = tensor.shape[0]
        if tensor.datatype != "FP32" or len(raw) != rows * WIDTH * 4:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "unexpected input")
        with torch.inference_mode():
            x = torch.frombuffer(bytearray(raw), dtype=torch.float32)
            y = model(x.reshape(rows, WIDTH))
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


def main() -> None:
    """Until SIGTERM. The port is on the command line."""
    torch.set_num_threads(1)
    server = grpc.server(ThreadPoolExecutor(THREADS))
    rpc.add_GRPCInferenceServiceServicer_to_server(Floor(), server)  # type: ignore[no-untyped-call]
    server.add_insecure_port(f"127.0.0.1:{int(sys.argv[1])}")
    server.start()
    told = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: told.set())
    told.wait()
    server.stop(1).wait()


if __name__ == "__main__":
    main()
