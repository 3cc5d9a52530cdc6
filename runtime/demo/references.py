"""What each model itself says about each test image, from its packed files.

Owns: reading the store in this process, without the server or its cache. Must not: use
the server's path of the weights (loader/load.py, loader/weights.py): a fault there must
show as a difference, so the tensors are read by safetensors' own reader.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from loader.errors import LoadFailed
from loader.graph import Graph, read_graph
from loader.manifest import ModelSpec, read_manifest
from runtime.demo.digits import Digits
from runtime.demo.errors import DemoFailed
from runtime.demo.fleet import Member
from runtime.demo.nets import CLASSES
from runtime.demo.stream import Floats

VERSION = "1"


@dataclass(frozen=True, slots=True)
class References:
    """`scores[model, image]`: ten of them. `nbytes`: of all models' weights."""

    scores: Floats
    nbytes: int


def read_references(
    folder: Path,
    members: Sequence[Member],
    digits: Digits,
    advance: Callable[[], None] = lambda: None,
) -> References:
    """Run every packed model over all test images, on the CPU."""
    scores = np.empty((len(members), len(digits.test_images), CLASSES), np.float32)
    graphs: dict[str, Graph] = {}
    nbytes = 0
    for place, member in enumerate(members):
        directory = folder / member.name / VERSION
        try:
            spec = read_manifest(
                (directory / "model.json").read_bytes(), member.name, VERSION
            )
            graph = _graph(directory, spec, graphs)
        except (OSError, LoadFailed) as error:
            raise DemoFailed(
                f"{member.name} cannot be read back ({error}): try --fresh"
            ) from error
        tensors = load_file(directory / spec.weights.name)
        weights = [tensors[weight.name] for weight in graph.weights]
        nbytes += sum(weight.nbytes for weight in weights)
        images = torch.unflatten(digits.test_images, -1, member.architecture.shape)
        with torch.inference_mode():
            (found,) = graph(*weights, images)
        scores[place] = found.numpy()
        advance()
    return References(scores, nbytes)


def _graph(directory: Path, spec: ModelSpec, graphs: dict[str, Graph]) -> Graph:
    if spec.graph.sha256 not in graphs:
        data = (directory / spec.graph.name).read_bytes()
        graphs[spec.graph.sha256] = read_graph(data, torch.device("cpu"))
    return graphs[spec.graph.sha256]
