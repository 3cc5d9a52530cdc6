"""The models of `bench.load`: one file of weights for everybody, 150 tensors each.

Owns: their making, in hotset's layout and in tensorizer's own, and their way into a
bucket. Must not: measure.
"""

import hashlib
import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from loader.digest import chunked, chunks_json
from loader.manifest import ModelSpec, read_manifest
from loader.store import Store

TENSORS = 150
"""As a BERT has; what a library does for each tensor is most of a small load."""

WEIGHTS = "model.safetensors"
TENSORIZED = "model.tensors"
FILES = (WEIGHTS, TENSORIZED, "graph.json", "model.json")
MB = 1_000_000


def name_of(megabytes: int) -> str:
    """`mb-0004`: sorts by size."""
    return f"mb-{megabytes:04d}"


def make(folder: Path, megabytes: int, tensorized: bool) -> Path:
    """A model of so many MB below `folder`; gives its directory."""
    there = folder / name_of(megabytes) / "1"
    there.mkdir(parents=True)
    tensors = weights(megabytes)
    save_file(tensors, there / WEIGHTS)
    graph = json.dumps(graph_of(tensors)).encode()
    (there / "graph.json").write_bytes(graph)
    manifest = {
        "format": 1,
        "graph": reference(there / "graph.json"),
        "weights": {**reference(there / WEIGHTS), "chunks": chunks(there / WEIGHTS)},
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [1]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [1]}],
        "max_batch_size": 0,
    }
    (there / "model.json").write_text(json.dumps(manifest))
    if tensorized:
        from tensorizer import TensorSerializer

        serializer = TensorSerializer(str(there / TENSORIZED))
        serializer.write_state_dict(tensors)
        serializer.close()
    return there


def weights(megabytes: int) -> dict[str, torch.Tensor]:
    """A few large matrices and many small ones, bfloat16 and float32."""
    seed = torch.Generator().manual_seed(megabytes)
    left, tensors = megabytes * MB, {}
    for index in range(TENSORS):
        # A third of what is left, as long as that is worth it; then equal shares.
        share = left // 3 if index < 4 else left // (TENSORS - index)
        dtype = torch.float32 if index % 3 else torch.bfloat16
        rows = max(1, share // (64 * dtype.itemsize))
        shape = (rows, 64)
        drawn = torch.randint(
            -100, 100, shape, dtype=torch.int8, generator=seed
        )  # ten times as quick as normal numbers, and as good for copying
        tensors[f"layer.{index:03d}.weight"] = drawn.to(dtype)
        left -= rows * 64 * dtype.itemsize
    return tensors


def graph_of(tensors: dict[str, torch.Tensor]) -> dict[str, object]:
    """A graph that wants them all, and computes next to nothing."""
    told = [
        {
            "name": name,
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "shape": list(tensor.shape),
        }
        for name, tensor in tensors.items()
    ]
    node = {"name": "y", "op": "aten.relu.default", "args": [{"input": "x"}]}
    return {
        "format": 1,
        "weights": told,
        "inputs": ["x"],
        "nodes": [node],
        "outputs": [{"name": "y", "value": {"node": "y"}}],
    }


def reference(path: Path) -> dict[str, object]:
    """As model.json refers to a file."""
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    return {"file": path.name, "size": len(data), "sha256": digest}


def chunks(path: Path) -> dict[str, object]:
    """The digests a packer would put there."""
    found = chunked(path.read_bytes())
    assert found is not None
    return chunks_json(found)


def spec_of(directory: Path) -> ModelSpec:
    """The manifest as hotset's catalog would know it."""
    name, version = directory.parent.name, directory.name
    data = (directory / "model.json").read_bytes()
    return read_manifest(data, name, version)


async def upload(store: Store, directory: Path) -> None:
    """All its files into a bucket, under the same names."""
    for name in FILES:
        path = directory / name
        if path.exists():
            key = f"{directory.parent.name}/{directory.name}/{name}"
            await store.put(key, path.read_bytes())
