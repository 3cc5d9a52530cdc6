"""What the server asks of the process that compiles, and what that answers.

Owns: the files of a job's folder, both ways; the server writes `job.json`,
`graph.json` and `weights.bin`, the worker `result.json`. Must not: compile, or start
anything.

The weights are those of a model that is served just now: its answers are what the
compiled code is compared with, and random ones may give nothing but NaN.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch

from loader.arguments import DTYPES
from loader.graph import WeightSpec
from loader.manifest import ModelSpec

JOB, GRAPH, WEIGHTS, RESULT = "job.json", "graph.json", "weights.bin", "result.json"

MAX_WEIGHTS = 1 << 30
"""Bytes of weights that are written out for a trial; larger models are not compiled."""


@dataclass(frozen=True, slots=True)
class JobInput:
    """An input as the manifest has it; -1 in `shape` is free, up to `most` (-1: any).
    Integers lie within `low` and `high`."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    most: tuple[int, ...]
    low: int
    high: int


@dataclass(frozen=True, slots=True)
class Result:
    """What became of it. `reason`: empty if it may be used; else words for a log and a
    status. `speedup`: eager's time by its own, over all trials."""

    key: str = ""
    reason: str = ""
    speedup: float = 0.0
    cached: bool = False


def job_inputs(spec: ModelSpec, dtypes: Sequence[torch.dtype]) -> tuple[JobInput, ...]:
    """The inputs of a manifest; `dtypes`: of each."""
    made = []
    for tensor, dtype in zip(spec.inputs, dtypes, strict=True):
        most = list(tensor.max_shape or (-1,) * len(tensor.shape))
        if spec.max_batch_size:
            most[0] = spec.max_batch_size
        low = 0 if tensor.low is None else tensor.low
        # An index without a range is as likely a mask as anything: 0 and 1 do for both.
        high = low + 1 if tensor.high is None else tensor.high
        made.append(JobInput(dtype, tensor.shape, tuple(most), low, high))
    return tuple(made)


def write_job(
    folder: Path,
    graph: bytes,
    inputs: Sequence[JobInput],
    weights: Sequence[torch.Tensor],
    onednn_from: int = 0,
) -> None:
    """Everything the worker needs. `onednn_from`: of the server, whose graph the code
    must be quicker than (loader/linear.py). Raises OSError."""
    told = [
        {**asdict(item), "dtype": str(item.dtype).removeprefix("torch.")}
        for item in inputs
    ]
    job = {"inputs": told, "onednn_from": onednn_from}
    (folder / JOB).write_text(json.dumps(job))
    (folder / GRAPH).write_bytes(graph)
    with (folder / WEIGHTS).open("wb") as file:
        for weight in weights:
            file.write(_bytes(weight))


def _bytes(weight: torch.Tensor) -> bytes:
    flat = weight.detach().cpu().contiguous().flatten().view(torch.uint8)
    return flat.numpy().tobytes()


def read_inputs(folder: Path) -> tuple[JobInput, ...]:
    """The inputs of a job."""
    return tuple(
        JobInput(
            DTYPES[item["dtype"]],
            tuple(item["shape"]),
            tuple(item["most"]),
            item["low"],
            item["high"],
        )
        for item in _job(folder)["inputs"]
    )


def read_onednn_from(folder: Path) -> int:
    """Multiplications from which the server runs a linear layer in oneDNN; 0: none."""
    return int(_job(folder)["onednn_from"])


def _job(folder: Path) -> dict[str, Any]:
    return cast(dict[str, Any], json.loads((folder / JOB).read_text()))


def read_weights(folder: Path, wanted: Sequence[WeightSpec]) -> list[torch.Tensor]:
    """The weights of a job, in the graph's order, on the CPU."""
    data, at, found = bytearray((folder / WEIGHTS).read_bytes()), 0, []
    for weight in wanted:
        made = torch.empty(weight.shape, dtype=weight.dtype)
        size = made.numel() * made.element_size()
        if size:
            source = torch.frombuffer(data, dtype=torch.uint8, count=size, offset=at)
            made.flatten().view(torch.uint8).copy_(source)
        at += size
        found.append(made)
    return found


def write_result(folder: Path, result: Result) -> None:
    """The last thing a worker does."""
    (folder / RESULT).write_text(json.dumps(asdict(result)))


def read_result(folder: Path) -> Result | None:
    """What the worker said; None if it did not come to that."""
    try:
        told = json.loads((folder / RESULT).read_text())
        return Result(
            str(told["key"]),
            str(told["reason"])[:500],
            float(told["speedup"]),
            bool(told["cached"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
