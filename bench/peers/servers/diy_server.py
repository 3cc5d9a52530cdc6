"""What a good engineer writes in a day to serve many models from little memory.

grpc.aio, an LRU by bytes, single flight, loads in two threads; whoever holds a model
while it is evicted keeps it alive. Nothing more: no digests, deadlines, admission,
batching, metrics, or word about why. hotset is to be better than this.

Owns: itself; it takes only the protocol's generated code from us. `torch`: files that
torch.save made, read with weights_only; `safetensors`: hotset's own files, mapped into
memory. Both are files that the bench itself has written.
"""

import argparse
import asyncio
import signal
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import torch
from safetensors.torch import load_file
from torch import nn

from protos import open_inference_pb2 as pb
from protos import open_inference_pb2_grpc as rpc

LOADERS = 2
"""Threads. More take the interpreter from the loop: measured, 8 were no faster."""

TEMPERATURE = "hotset_temperature"
State = dict[str, torch.Tensor]


def built(state: State) -> tuple[nn.Sequential, int]:
    """The module over these very tensors, not over copies of them; and their bytes."""
    layers: list[nn.Module] = []
    with torch.device("meta"):
        for name in sorted(name for name in state if name.endswith(".weight")):
            wide, narrow = state[name].shape
            layers += [nn.Linear(narrow, wide), nn.ReLU()]
        model = nn.Sequential(*layers[:-1]).eval()
    model.load_state_dict(state, assign=True)
    return model, sum(tensor.nbytes for tensor in state.values())


def read_torch(folder: Path, name: str, device: str) -> tuple[nn.Sequential, int]:
    """As most people keep their weights."""
    file = folder / f"{name}.pt"
    return built(torch.load(file, weights_only=True, map_location=device))


def read_safetensors(folder: Path, name: str, device: str) -> tuple[nn.Sequential, int]:
    """Mapped: on a CPU a page is read when the model first touches it."""
    return built(load_file(folder / name / "1" / "model.safetensors", device=device))


READERS = {"torch": read_torch, "safetensors": read_safetensors}


class Models:
    """The cache."""

    def __init__(self, folder: Path, form: str, budget: int, device: str) -> None:
        self.device = device
        self._folder = folder
        self._read = READERS[form]
        self._budget = budget
        self._held = 0
        self._resident: OrderedDict[str, tuple[nn.Sequential, int]] = OrderedDict()
        self._coming: dict[str, asyncio.Task[nn.Sequential]] = {}
        self._threads = ThreadPoolExecutor(LOADERS)

    async def get(self, name: str) -> tuple[nn.Sequential, str]:
        """The model, and how it was met."""
        found = self._resident.get(name)
        if found is not None:
            self._resident.move_to_end(name)
            return found[0], "hit"
        task, met = self._coming.get(name), "wait"
        if task is None:
            met = "miss"
            task = self._coming[name] = asyncio.create_task(self._load(name))
        return await asyncio.shield(task), met

    async def _load(self, name: str) -> nn.Sequential:
        loop = asyncio.get_running_loop()
        try:
            model, nbytes = await loop.run_in_executor(
                self._threads, self._read, self._folder, name, self.device
            )
        finally:
            del self._coming[name]
        while self._resident and self._held + nbytes > self._budget:
            _, (_, freed) = self._resident.popitem(last=False)
            self._held -= freed
        self._resident[name] = model, nbytes
        self._held += nbytes
        return model


class Service(rpc.GRPCInferenceServiceServicer):
    """ModelInfer and nothing else."""

    def __init__(self, models: Models) -> None:
        self._models = models

    async def ModelInfer(
        self,
        request: pb.ModelInferRequest,
        context: "grpc.aio.ServicerContext[pb.ModelInferRequest, pb.ModelInferResponse]",  # noqa: E501 - one name
    ) -> pb.ModelInferResponse:
        try:
            model, met = await self._models.get(request.model_name)
        except FileNotFoundError:
            await context.abort(grpc.StatusCode.NOT_FOUND, "unknown model")
        (tensor,), (raw,) = request.inputs, request.raw_input_contents
        with torch.inference_mode():
            x = torch.frombuffer(bytearray(raw), dtype=torch.float32)
            x = x.reshape(tuple(tensor.shape)).to(self._models.device)
            y = model(x).cpu()
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
        answer.parameters[TEMPERATURE].string_param = met
        return answer


async def serve(models: Models, port: int) -> None:
    """Until SIGTERM."""
    server = grpc.aio.server()
    # Generated code has no annotations.
    rpc.add_GRPCInferenceServiceServicer_to_server(Service(models), server)  # type: ignore[no-untyped-call]
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    told = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
    await told.wait()
    await server.stop(1)


def main() -> None:
    """The command."""
    made = argparse.ArgumentParser(description="An LRU of models, done by hand.")
    made.add_argument("--port", type=int, required=True)
    made.add_argument("--folder", type=Path, required=True)
    made.add_argument("--form", choices=sorted(READERS), required=True)
    made.add_argument("--budget", type=int, required=True)
    made.add_argument("--device", default="cpu")
    options = made.parse_args()
    torch.set_num_threads(1)
    models = Models(options.folder, options.form, options.budget, options.device)
    asyncio.run(serve(models, options.port))


if __name__ == "__main__":
    main()
