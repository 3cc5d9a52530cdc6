"""Real model directories, written by hand: y = x @ w.T + b, without a packer.

`linear("m", 3)` answers x * 3 (four columns), so that an answer tells which model, and
which generation of it, gave it.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save

from loader.digest import SMALLEST, chunked, chunks_json

GRAPH = {
    "format": 1,
    "weights": [
        {"name": "b", "dtype": "float32", "shape": [4]},
        {"name": "w", "dtype": "float32", "shape": [4, 4]},
    ],
    "inputs": ["x"],
    "nodes": [
        {
            "name": "y",
            "op": "aten.linear.default",
            "args": [{"input": "x"}, {"weight": "w"}, {"weight": "b"}],
        }
    ],
    "outputs": [{"name": "y", "value": {"node": "y"}}],
}


def weights(factor: float, extra: int = 0) -> bytes:
    tensors = {"w": torch.eye(4) * factor, "b": torch.zeros(4)}
    if extra:
        tensors["__pad0"] = torch.zeros(extra, dtype=torch.uint8)
    return save(tensors)


def files(factor: float = 1.0, extra: int = 0, **manifest) -> dict[str, bytes]:
    """The three files of a model, right in every byte."""
    graph = json.dumps(GRAPH).encode()
    data = weights(factor, extra)
    return {
        "graph.json": graph,
        "model.safetensors": data,
        "model.json": json.dumps(
            {
                "format": 1,
                "graph": ref("graph.json", graph),
                "weights": ref("model.safetensors", data),
                "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}],
                "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 4]}],
                "max_batch_size": 8,
                **manifest,
            }
        ).encode(),
    }


def ref(name: str, data: bytes) -> Mapping[str, object]:
    digest = hashlib.sha256(data).hexdigest()
    return {"file": name, "size": len(data), "sha256": digest}


def write(folder: Path, made: Mapping[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in made.items():
        (folder / name).write_bytes(data)


def by_chunks(made: Mapping[str, bytes], size: int = SMALLEST) -> dict[str, bytes]:
    """The same model, its weights verified chunk by chunk."""
    manifest = json.loads(made["model.json"])
    chunks = chunked(made["model.safetensors"], size)
    manifest["weights"]["chunks"] = chunks_json(chunks)
    return {**made, "model.json": json.dumps(manifest).encode()}


def linear(
    store: Path, name: str, factor: float = 1.0, version: str = "1", extra: int = 0,
    chunks: bool = False, **manifest,
) -> None:  # fmt: skip
    made = files(factor, extra, **manifest)
    write(store / name / version, by_chunks(made) if chunks else made)
