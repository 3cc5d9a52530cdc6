"""Weights in memory: one flat buffer a model, its tensors views into it.

Owns: where each tensor of a safetensors file goes in the buffer, the copy, the views.
Must not: fetch, hash or parse headers (loader/header.py).

A file whose tensors all start at a multiple of ALIGNMENT, relative to the data section,
is moved as one run: the buffer is the data section. Others (odd shapes of small dtypes
leave the next tensor misaligned) are placed tensor by tensor. Either way the file's
size bounds the buffer's: padding costs at most ALIGNMENT-1 bytes a tensor, and a
tensor's entry in the header is never shorter than that (`{"a":{"dtype":"U8","shape":[],
"data_offsets":[0,1]}}` is 50 bytes), so the bound is known from model.json alone.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from loader.errors import ArtifactRefused
from loader.graph import WeightSpec
from loader.header import Layout, Slot

ALIGNMENT = 16
"""Vectorised loads and cuBLAS want 16 bytes; torch's own views only the item size."""

PADDING = "__pad"
"""Tensors a packer adds to align the others; nobody's weights."""


@dataclass(frozen=True, slots=True)
class Run:
    """Bytes `[start, end)` of the data section go to `to` in the buffer."""

    start: int
    end: int
    to: int


@dataclass(frozen=True, slots=True)
class Placing:
    """The plan of a buffer: its size, what to copy, where each tensor then starts."""

    nbytes: int
    runs: tuple[Run, ...]
    offsets: Mapping[str, int]


def placing(layout: Layout) -> Placing:
    """Plan the buffer for a file."""
    tensors = [slot for slot in layout.tensors if slot.end > slot.start]
    end = max((slot.end for slot in tensors), default=0)
    offsets = {slot.name: slot.start for slot in layout.tensors}
    if all(slot.start % ALIGNMENT == 0 for slot in tensors):
        return Placing(end, (Run(0, end, 0),) if end else (), offsets)
    runs, at = [], 0
    for slot in tensors:
        at = -(-at // ALIGNMENT) * ALIGNMENT
        offsets[slot.name] = at
        runs.append(Run(slot.start, slot.end, at))
        at += slot.end - slot.start
    return Placing(at, tuple(runs), offsets)


def pour(
    runs: Iterable[Run], at: int, data: memoryview
) -> Iterator[tuple[int, memoryview]]:
    """Where in the buffer which part of `data` goes.

    `at`: where `data` begins in the data section; negative while it still holds the
    header.
    """
    end = at + len(data)
    for run in runs:
        start, stop = max(run.start, at), min(run.end, end)
        if start < stop:
            yield run.to + start - run.start, data[start - at : stop - at]


def bind(
    layout: Layout,
    placing: Placing,
    wanted: Sequence[WeightSpec],
    buffer: torch.Tensor,
) -> tuple[torch.Tensor, ...]:
    """The graph's weights, in its call order, as views into the buffer.

    Raises ArtifactRefused where file and graph do not fit each other exactly.
    """
    slots = {slot.name: slot for slot in layout.tensors}
    views = []
    for weight in wanted:
        slot = slots.pop(weight.name, None)
        if slot is None:
            raise ArtifactRefused(
                "model.safetensors", f"tensor '{weight.name}' of the graph is missing"
            )
        if slot.dtype != weight.dtype or slot.shape != weight.shape:
            raise ArtifactRefused(
                f"model.safetensors: tensor '{weight.name}'",
                f"is {_kind(slot.dtype, slot.shape)}, the graph wants "
                f"{_kind(weight.dtype, weight.shape)}",
            )
        views.append(_view(slot, placing.offsets[slot.name], buffer))
    strangers = [name for name in slots if not name.startswith(PADDING)]
    if strangers:
        raise ArtifactRefused(
            "model.safetensors", f"tensor '{strangers[0]}' is not used by the graph"
        )
    return tuple(views)


def _view(slot: Slot, offset: int, buffer: torch.Tensor) -> torch.Tensor:
    if slot.end == slot.start:
        return torch.zeros(slot.shape, dtype=slot.dtype, device=buffer.device)
    flat = buffer.narrow(0, offset, slot.end - slot.start)
    return flat.view(slot.dtype).view(slot.shape)


def _kind(dtype: torch.dtype, shape: tuple[int, ...]) -> str:
    return f"{str(dtype).removeprefix('torch.')}{list(shape)}"
