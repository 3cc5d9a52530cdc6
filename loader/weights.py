"""Weights in memory: tensors that are views into one flat buffer.

Owns: the views of a graph's weights, worked out once for all models that share a header
and a graph. Must not: know where the buffer's bytes come from (loader/placing.py says
where they lie).
"""

from collections.abc import Sequence

import torch
from cachetools import LRUCache

from loader.dtypes import DTYPES
from loader.errors import ArtifactRefused
from loader.graph import Graph, WeightSpec
from loader.header import Layout, Slot
from loader.placing import ALIGNMENT, Placed, Placing, place

PADDING = "__pad"
"""Tensors a packer adds to align the others; nobody's weights."""

View = tuple[torch.dtype, tuple[int, ...], tuple[int, ...], int]
"""Dtype, shape, strides, and where it starts, counted in its own items."""


def views(
    layout: Layout, placing: Placing, wanted: Sequence[WeightSpec]
) -> tuple[View, ...]:
    """The graph's weights, in its call order, as views into a buffer.

    Raises ArtifactRefused where file and graph do not fit each other exactly.
    """
    slots = {slot.name: slot for slot in layout.tensors}
    found = []
    for weight in wanted:
        slot = slots.pop(weight.name, None)
        if slot is None:
            raise ArtifactRefused(
                "model.safetensors", f"tensor '{weight.name}' of the graph is missing"
            )
        dtype = DTYPES[slot.dtype]
        if dtype != weight.dtype or slot.shape != weight.shape:
            raise ArtifactRefused(
                f"model.safetensors: tensor '{weight.name}'",
                f"is {_kind(dtype, slot.shape)}, the graph wants "
                f"{_kind(weight.dtype, weight.shape)}",
            )
        found.append(_view(slot, placing.offsets[slot.name]))
    strangers = [name for name in slots if not name.startswith(PADDING)]
    if strangers:
        raise ArtifactRefused(
            "model.safetensors", f"tensor '{strangers[0]}' is not used by the graph"
        )
    return tuple(found)


def _view(slot: Slot, offset: int) -> View:
    dtype = DTYPES[slot.dtype]
    # An empty tensor lies anywhere; a misaligned "anywhere" would not divide.
    start = 0 if slot.end == slot.start else offset // dtype.itemsize
    strides = torch.empty(slot.shape, dtype=dtype, device="meta").stride()
    return dtype, slot.shape, strides, start


def bind(views: Sequence[View], buffer: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The tensors themselves. `buffer`: uint8, its address a multiple of ALIGNMENT."""
    typed = {dtype: buffer.view(dtype) for dtype in {view[0] for view in views}}
    base = {dtype: flat.storage_offset() for dtype, flat in typed.items()}
    return tuple(
        [
            typed[dtype].as_strided(shape, strides, base[dtype] + start)
            for dtype, shape, strides, start in views
        ]
    )


class Views:
    """Those worked out before. One event loop."""

    def __init__(self, capacity: int = 256) -> None:
        self._views: LRUCache[tuple[str, Placed], tuple[View, ...]] = LRUCache(capacity)

    def of(self, placed: Placed, graph: Graph) -> tuple[View, ...]:
        """The graph's weights in such a file. Raises ArtifactRefused."""
        key = graph.digest, placed
        found = self._views.get(key)
        if found is None:
            found = views(placed.layout, placed.placing, graph.weights)
            self._views[key] = found
        return found


def unpack(data: bytes, wanted: Sequence[WeightSpec]) -> tuple[torch.Tensor, ...]:
    """The weights of a whole file, in a buffer of their own (packing looks at what it
    wrote the way a server will). Raises ArtifactRefused."""
    placed = place(data, len(data))
    whole = -(-placed.placing.nbytes // ALIGNMENT) * ALIGNMENT
    buffer = torch.empty(whole, dtype=torch.uint8)
    source = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    source = source[placed.layout.data_start :]
    for run in placed.placing.runs:
        buffer[run.to : run.to + run.end - run.start] = source[run.start : run.end]
    return bind(views(placed.layout, placed.placing, wanted), buffer)


def _kind(dtype: torch.dtype, shape: tuple[int, ...]) -> str:
    return f"{str(dtype).removeprefix('torch.')}{list(shape)}"
