"""The fleet of bench.fleet: 200 models of 5.07 MB, in the forms that servers read.

Owns: making them, and the right answer of each. Must not: measure.
"""

import hashlib
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from bench.floor_server import mlp
from bench.load_models import spec_of
from bench.traffic import example
from loader.digest import FileRef, chunked
from loader.manifest import write_manifest
from loader.pack import export, write
from loader.pack_weights import safetensors_bytes

HIDDEN = 1088
"""64-1088-1088-10 in float32: 5.07 MB."""

STORE, SAVED = "store", "saved"


@dataclass(frozen=True, slots=True)
class Fleet:
    """`right`: each model's answer to the example."""

    folder: Path
    right: Mapping[str, torch.Tensor]


def make(folder: Path, count: int, told: Callable[[], object]) -> Fleet:
    """A store for hotset, files of torch.save for the others, the same weights."""
    (folder / SAVED).mkdir(parents=True)
    pattern = folder / "pattern"
    write(export(mlp(HIDDEN), {"x": example()}), pattern)
    right: dict[str, torch.Tensor] = {}
    for index in range(count):
        name, model = f"model-{index:04d}", mlp(HIDDEN, seed=index)
        state = model.state_dict()
        _store(pattern, folder / STORE / name / "1", state)
        torch.save(state, folder / SAVED / f"{name}.pt")
        with torch.inference_mode():
            right[name] = model(example())[0]
        told()
    return Fleet(folder, right)


def _store(pattern: Path, there: Path, state: Mapping[str, torch.Tensor]) -> None:
    """Another model of a packed one's graph. (`write` tries every model out against the
    module and waits for the disk: right for a store, 20 seconds for this one.)"""
    shutil.copytree(pattern, there)
    spec = spec_of(pattern)
    data = safetensors_bytes(state)
    name = spec.weights.name
    digest = hashlib.sha256(data).hexdigest()
    weights = FileRef(name, len(data), digest, chunked(data))
    (there / name).write_bytes(data)
    (there / "model.json").write_bytes(write_manifest(replace(spec, weights=weights)))
