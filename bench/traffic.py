"""Models to ask and requests to ask them: the same for every bench.

Owns: the fleet of MLPs in a store, the request's bytes, the Zipf stream. Must not:
measure. Everything is seeded: two runs ask the same models in the same order.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import torch

from bench.floor_server import WIDTH, mlp
from loader.pack import export, write
from protos import open_inference_pb2 as pb

WIDTHS = (64, 128, 256, 512)
"""Hidden sizes of a fleet: 36 KB to 1.2 MB a model, so that bytes matter."""

METHOD = "/inference.GRPCInferenceService/ModelInfer"


@dataclass(frozen=True, slots=True)
class Stored:
    """A model in the store, and the bytes it holds when it is resident."""

    name: str
    nbytes: int


def example(rows: int = 1) -> torch.Tensor:
    """The input that every bench sends."""
    numbers = torch.arange(rows * WIDTH, dtype=torch.float32)
    return (numbers.reshape(rows, WIDTH) % 17 - 8) / 8


def one_model(store: Path) -> None:
    """The floor's model, as hotset wants it: `mlp`, version 1."""
    write(export(mlp(), {"x": example()}), store / "mlp" / "1")


def hidden_sizes(count: int) -> list[int]:
    """Of the models of a fleet; model N has the weights of `mlp(size, seed=N)`."""
    return random.Random(0).choices(WIDTHS, k=count)


def fleet(
    store: Path, count: int, told: Callable[[int], object] = lambda done: None
) -> list[Stored]:
    """`count` MLPs of mixed sizes, weights of their own each; graphs are shared."""
    sizes = hidden_sizes(count)
    graphs = {hidden: export(mlp(hidden), {"x": example()}) for hidden in set(sizes)}
    made = []
    for index, hidden in enumerate(sizes):
        name = f"mlp-{index:04d}"
        packed = write(
            graphs[hidden],
            store / name / "1",
            weights=mlp(hidden, seed=index).state_dict(),
        )
        made.append(Stored(name, packed.spec.weights.size))
        told(index + 1)
    return made


def request(model: str, rows: int = 1) -> pb.ModelInferRequest:
    """One predict with raw contents."""
    tensor = pb.ModelInferRequest.InferInputTensor(
        name="x", datatype="FP32", shape=(rows, WIDTH)
    )
    raw = example(rows).numpy().tobytes()
    return pb.ModelInferRequest(
        model_name=model, inputs=[tensor], raw_input_contents=[raw]
    )


def shares(count: int, alpha: float) -> list[float]:
    """How much of the traffic each rank gets, most popular first; they sum to 1."""
    weights = [1.0 / rank**alpha for rank in range(1, count + 1)]
    total = sum(weights)
    return [weight / total for weight in weights]


def zipf(names: Sequence[str], alpha: float, length: int, seed: int = 0) -> list[str]:
    """Requests by name. Popularity has nothing to do with the order of the names."""
    chance = random.Random(seed)
    ranked = list(names)
    chance.shuffle(ranked)
    cumulative = list(accumulate(shares(len(ranked), alpha)))
    return chance.choices(ranked, cum_weights=cumulative, k=length)
