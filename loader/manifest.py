"""What a model is: `model.json`, parsed once into frozen values.

Owns: the manifest's format and its checks (docs/format.md has it in words). Must not:
fetch anything or touch torch.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from blake3 import blake3

from loader.digest import FileRef as FileRef
from loader.digest import file_json, read_file
from loader.errors import ArtifactRefused
from loader.strictjson import (
    INT64_MAX,
    INT64_MIN,
    array,
    boolean,
    integer,
    members,
    parse,
    text,
)

FORMAT = 1

DATATYPES = frozenset(
    ("BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64")
    + ("FP16", "BF16", "FP32", "FP64")
)
"""The Open Inference Protocol's, less BYTES."""

MAX_MANIFEST = 1 << 20
MAX_TENSORS = 256
"""Inputs, and outputs. Triton's many-outputs bug was an unbounded one."""
MAX_RANK = 16
MAX_BATCH = 1_000_000
MAX_LABELS = 64
KEY_BYTES = 16

TENSOR_NAME = re.compile(r"[!-~]{1,256}")
_LABEL = re.compile(r"[^\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]{0,512}")
_TENANT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,252}|")


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """An input or output: OIP name and datatype, shape with -1 for a free dimension.

    `low`, `high`: inclusive range of an integer input that indexes a table; None: any.
    `max_shape`: how large each free dimension may be (a table of positions ends
    somewhere too), -1 for any; empty: no dimension is bounded.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    low: int | None = None
    high: int | None = None
    max_shape: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One version of one model.

    `max_batch_size` >= 1: dimension 0 of every input and output is the batch (and -1 in
    `shape`) and at most so many rows go through in one call; 0: no batch dimension,
    one request is one call.
    """

    name: str
    version: str
    graph: FileRef
    weights: FileRef
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch_size: int
    labels: Mapping[str, str] = field(default_factory=dict)
    pin: bool = False
    priority: int = 0
    tenant: str = ""
    directory: str = ""
    """Where it lies in the store: `name/version`, or `name` alone (version "1")."""

    key: str = field(init=False, repr=False, compare=False)
    """What the cache and the policies call this model: `name:version@content`.

    The digest is of all that is served and of all that the cache decides by, so an
    overwritten version is another model, a corrected `model.json` takes effect, and no
    answer ever mixes two generations. Made once: every request asks for it.
    """

    def __post_init__(self) -> None:
        served = (
            self.weights.identity, self.weights.size, self.graph.sha256, self.inputs,
            self.outputs, self.max_batch_size, self.pin, self.priority, self.tenant,
        )  # fmt: skip
        content = blake3(repr(served).encode()).hexdigest(KEY_BYTES)
        object.__setattr__(self, "key", f"{self.name}:{self.version}@{content}")


def read_manifest(data: bytes, model: str, version: str) -> ModelSpec:
    """The model of this `model.json`, or ArtifactRefused naming the place."""
    document = members(
        parse(data, "model.json", MAX_MANIFEST),
        "model.json",
        ("format", "graph", "weights", "inputs", "outputs", "max_batch_size"),
        ("labels", "pin", "priority", "tenant"),
    )
    integer(document["format"], "model.json: format", FORMAT, FORMAT)
    spec = ModelSpec(
        name=model,
        version=version,
        graph=read_file(document["graph"], "model.json: graph"),
        weights=read_file(document["weights"], "model.json: weights", chunks=True),
        inputs=_tensors(document["inputs"], "inputs", ("range", "max_shape")),
        outputs=_tensors(document["outputs"], "outputs", ()),
        max_batch_size=integer(
            document["max_batch_size"], "model.json: max_batch_size", 0, MAX_BATCH
        ),
        labels=_labels(document.get("labels", {})),
        pin=boolean(document.get("pin", False), "model.json: pin"),
        priority=integer(
            document.get("priority", 0), "model.json: priority", -(2**31), 2**31 - 1
        ),
        tenant=text(
            document.get("tenant", ""), "model.json: tenant", _TENANT, "a tenant's name"
        ),
    )
    _check_whole(spec)
    return spec


def _tensors(
    value: object, key: str, optional: tuple[str, ...]
) -> tuple[TensorSpec, ...]:
    place = f"model.json: {key}"
    return tuple(
        _tensor(item, f"{place}[{index}]", optional)
        for index, item in enumerate(array(value, place, MAX_TENSORS))
    )


def _tensor(value: object, place: str, optional: tuple[str, ...]) -> TensorSpec:
    found = members(value, place, ("name", "datatype", "shape"), optional)
    name = text(
        found["name"], f"{place}.name", TENSOR_NAME, "printable ASCII without spaces"
    )
    datatype = found["datatype"]
    if not isinstance(datatype, str) or datatype not in DATATYPES:
        raise ArtifactRefused(
            f"{place}.datatype", f"must be one of {', '.join(sorted(DATATYPES))}"
        )
    shape = _shape(found["shape"], f"{place}.shape", -1)
    low, high = None, None
    if "range" in found:
        low, high = _range(found["range"], f"{place}.range", datatype)
    limits = _limits(found.get("max_shape", []), f"{place}.max_shape", shape)
    return TensorSpec(name, datatype, shape, low, high, limits)


def _shape(value: object, place: str, low: int) -> tuple[int, ...]:
    return tuple(
        integer(dim, place, low, INT64_MAX) for dim in array(value, place, MAX_RANK)
    )


def _range(value: object, place: str, datatype: str) -> tuple[int, int]:
    bounds = array(value, place, 2)
    if len(bounds) != 2 or "INT" not in datatype:
        raise ArtifactRefused(place, "must be two integers, of an integer input")
    low, high = (integer(bound, place, INT64_MIN, INT64_MAX) for bound in bounds)
    if low > high:
        raise ArtifactRefused(place, "the lower end is above the upper")
    return low, high


def _limits(value: object, place: str, shape: Sequence[int]) -> tuple[int, ...]:
    limits = _shape(value, place, -1)
    if not limits:
        return ()
    if len(limits) != len(shape):
        raise ArtifactRefused(place, "must have one number for each of the shape's")
    if any(most != -1 and dim != -1 for most, dim in zip(limits, shape, strict=True)):
        raise ArtifactRefused(place, "bounds a dimension that is not free")
    return limits


def _labels(value: object) -> Mapping[str, str]:
    place = "model.json: labels"
    if not isinstance(value, dict) or len(value) > MAX_LABELS:
        raise ArtifactRefused(place, f"must be an object of at most {MAX_LABELS} keys")
    meant = "printable text of at most 512 characters"
    return {
        text(key, place, _LABEL, meant): text(item, place, _LABEL, meant)
        for key, item in value.items()
    }


def _check_whole(spec: ModelSpec) -> None:
    """What no part of the manifest shows alone."""
    files = {spec.graph.name, spec.weights.name, "model.json"}
    if len(files) != 3:
        raise ArtifactRefused("model.json", "two files of one name")
    if not spec.outputs:
        raise ArtifactRefused("model.json: outputs", "must have at least one")
    if spec.max_batch_size and not spec.inputs:
        raise ArtifactRefused("model.json: inputs", "a batch needs at least one")
    for key, tensors in (("inputs", spec.inputs), ("outputs", spec.outputs)):
        seen: set[str] = set()
        for index, tensor in enumerate(tensors):
            place = f"model.json: {key}[{index}]"
            if tensor.name in seen:
                raise ArtifactRefused(f"{place}.name", f"'{tensor.name}' twice")
            seen.add(tensor.name)
            if spec.max_batch_size and tensor.shape[:1] != (-1,):
                raise ArtifactRefused(
                    f"{place}.shape", "dimension 0 must be -1, the batch"
                )


def write_manifest(spec: ModelSpec) -> bytes:
    """The `model.json` that reads as `spec` (name and version are its directory's)."""
    document: dict[str, object] = {
        "format": FORMAT,
        "graph": file_json(spec.graph),
        "weights": file_json(spec.weights),
        "inputs": [_tensor_json(tensor) for tensor in spec.inputs],
        "outputs": [_tensor_json(tensor) for tensor in spec.outputs],
        "max_batch_size": spec.max_batch_size,
    }
    extras = {
        "labels": dict(spec.labels),
        "pin": spec.pin,
        "priority": spec.priority,
        "tenant": spec.tenant,
    }
    document |= {key: value for key, value in extras.items() if value}
    return json.dumps(document, indent=1).encode() + b"\n"


def _tensor_json(tensor: TensorSpec) -> dict[str, object]:
    found: dict[str, object] = {
        "name": tensor.name,
        "datatype": tensor.datatype,
        "shape": list(tensor.shape),
    }
    if tensor.low is not None:
        found["range"] = [tensor.low, tensor.high]
    if tensor.max_shape:
        found["max_shape"] = list(tensor.max_shape)
    return found
