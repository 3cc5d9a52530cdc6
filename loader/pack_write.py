"""A model directory, written whole or not at all.

Owns: the files, their proof, and the one moment they appear. Must not: export.

Everything is written beside the place it belongs to, read back the way a server reads
it, run on inputs nobody exported with, compared with the original, and only then
renamed. A model that is there is a model that works.
"""

import hashlib
import os
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from loader.digest import chunked
from loader.errors import ArtifactRefused
from loader.graph import Graph, read_graph
from loader.manifest import FileRef, ModelSpec, read_manifest, write_manifest
from loader.pack_errors import PackRefused
from loader.pack_export import Exported
from loader.pack_trial import difference
from loader.pack_weights import safetensors_bytes
from loader.weights import unpack

GRAPH, WEIGHTS, MANIFEST = "graph.json", "model.safetensors", "model.json"


@dataclass(frozen=True, slots=True)
class Packed:
    """A model on disk. `difference`: the largest from the original in the trials."""

    directory: Path
    spec: ModelSpec
    difference: float


def write(
    exported: Exported,
    directory: str | os.PathLike[str],
    *,
    weights: Mapping[str, torch.Tensor] | None = None,
    labels: Mapping[str, str] | None = None,
    pin: bool = False,
    priority: int = 0,
    tenant: str = "",
) -> Packed:
    """Write a model of an exported architecture, with these weights or its own.

    `weights`: a state_dict of the same architecture. Raises PackRefused, and then
    nothing is there that was not before.
    """
    final = Path(directory)
    if final.exists():
        raise PackRefused(f"{final} is there already; a version is never overwritten")
    chosen = _chosen(exported, weights)
    data = safetensors_bytes(chosen)
    numbered = final.name.isdecimal()
    spec = ModelSpec(
        name=final.parent.name if numbered else final.name,
        version=final.name if numbered else "1",
        graph=_reference(GRAPH, exported.graph_json),
        weights=_weights(data),
        inputs=exported.inputs,
        outputs=exported.outputs,
        max_batch_size=exported.max_batch_size,
        labels=dict(labels or {}),
        pin=pin,
        priority=priority,
        tenant=tenant,
    )
    files = {
        GRAPH: exported.graph_json,
        WEIGHTS: data,
        MANIFEST: write_manifest(spec),
    }
    own = None if weights is None else _in_module(exported, chosen)
    apart = _appear(files, final, exported, own)
    return Packed(final, spec, apart)


def _reference(name: str, data: bytes) -> FileRef:
    return FileRef(name, len(data), hashlib.sha256(data).hexdigest())


def _weights(data: bytes) -> FileRef:
    return replace(_reference(WEIGHTS, data), chunks=chunked(data))


def _chosen(
    exported: Exported, given: Mapping[str, torch.Tensor] | None
) -> dict[str, torch.Tensor]:
    """The graph's weights in its order, each checked against what the graph wants."""
    if given is None:
        return dict(exported.weights)
    own = exported.original.module.state_dict()
    strangers = given.keys() - own.keys() - exported.weights.keys()
    if strangers:
        raise PackRefused(f"weight '{min(strangers)}' is not one of this architecture")
    chosen = {}
    for spec in exported.graph.weights:
        if spec.name not in given and spec.name in own:
            raise PackRefused(f"weight '{spec.name}' is missing")
        # What is in no state_dict is a constant of the architecture.
        tensor = given.get(spec.name, exported.weights[spec.name])
        if tensor.dtype != spec.dtype or tuple(tensor.shape) != spec.shape:
            raise PackRefused(
                f"weight '{spec.name}' is {tensor.dtype}{list(tensor.shape)}, the "
                f"architecture has {spec.dtype}{list(spec.shape)}"
            )
        chosen[spec.name] = tensor
    for second, first in exported.tied.items():
        if second in given and not torch.equal(given[second], chosen[first]):
            raise PackRefused(f"weights '{first}' and '{second}' are one, yet differ")
    return chosen


def _in_module(
    exported: Exported, chosen: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Those the module knows by name; constants of its code have none."""
    module = exported.original.module
    names = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    names |= {name for name, _ in module.named_buffers(remove_duplicate=False)}
    return {name: tensor for name, tensor in chosen.items() if name in names}


def _appear(
    files: Mapping[str, bytes],
    final: Path,
    exported: Exported,
    weights: Mapping[str, torch.Tensor] | None,
) -> float:
    """Write beside, prove, rename. Whatever fails, nothing is left."""
    final.parent.mkdir(parents=True, exist_ok=True)
    beside = final.parent / f".{final.name}.{secrets.token_hex(4)}.part"
    beside.mkdir()
    try:
        for name, data in files.items():
            _write_through(beside / name, data)
        apart = _prove(beside, exported, weights)
        _sync(beside)
        beside.rename(final)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    _sync(final.parent)
    return apart


def _write_through(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _prove(
    directory: Path, exported: Exported, weights: Mapping[str, torch.Tensor] | None
) -> float:
    """Read the files as a server does, run them, and compare with the original."""
    try:
        graph, tensors = _read_back(directory, exported.graph)
    except ArtifactRefused as error:
        raise PackRefused(f"what was written does not read: {error}") from error
    apart = 0.0
    for trial in exported.trials:
        theirs = exported.original.run(trial.inputs, weights)
        with torch.no_grad():
            ours = graph.forward(*tensors, *trial.inputs)
        found = difference(ours, tuple(theirs.values()), graph.outputs, trial)
        apart = max(apart, found)
    return apart


def _read_back(directory: Path, known: Graph) -> tuple[Graph, tuple[torch.Tensor, ...]]:
    """The model in this directory. A graph of a digest we know is read once."""
    spec = read_manifest((directory / MANIFEST).read_bytes(), "model", "1")
    texts = {
        f.name: (directory / f.name).read_bytes() for f in (spec.graph, spec.weights)
    }
    found = _reference(spec.graph.name, texts[spec.graph.name])
    if found != spec.graph or _weights(texts[WEIGHTS]) != spec.weights:
        raise ArtifactRefused(MANIFEST, "does not tell what was written")
    graph = known
    if spec.graph.sha256 != known.digest:
        graph = read_graph(texts[spec.graph.name], torch.device("cpu"))
    graph.check(spec)
    return graph, unpack(texts[spec.weights.name], graph.weights)
