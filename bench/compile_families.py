"""The models of `bench.compile`: one of each kind, with real sizes.

Owns: the modules, and what a request to each looks like. Must not: measure.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from bench import minilm_models
from bench.floor_server import mlp
from bench.traffic import example
from loader.manifest import ModelSpec, read_manifest
from loader.pack import export, write
from loader.pack_hf import pack_hf
from runtime.demo.nets import ARCHITECTURES

Inputs = Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Family:
    """`pack` writes the model's directory; `inputs` makes a request of so many rows."""

    name: str
    label: str
    pack: Callable[[Path], object]
    inputs: Callable[[int], Inputs]
    missing: Callable[[bool], str] = lambda fetch: ""


def spec_of(directory: Path, name: str) -> ModelSpec:
    """Its manifest."""
    return read_manifest((directory / "model.json").read_bytes(), name, "1")


def _of_demo(name: str, label: str) -> Family:
    chosen = ARCHITECTURES[name]

    def inputs(rows: int) -> Inputs:
        draw = torch.Generator().manual_seed(rows)
        return {chosen.input: torch.rand((rows, *chosen.shape), generator=draw)}

    def pack(there: Path) -> object:
        torch.manual_seed(0)
        return write(export(chosen.build(), inputs(2)), there)

    return Family(name, label, pack, inputs)


FAMILIES = (
    Family(
        "mlp",
        "MLP\n64-256-256-10",
        lambda there: write(export(mlp(), {"x": example()}), there),
        lambda rows: {"x": example(rows)},
    ),
    _of_demo("cnn", "CNN\n2 conv, 2 linear"),
    _of_demo("former", "Transformer\n1 layer, 64 wide"),
    Family(
        "minilm",
        "MiniLM-L6\n32 tokens",
        lambda there: pack_hf(minilm_models.folder(), "feature-extraction", there),
        minilm_models.request,
        minilm_models.missing,
    ),
)
