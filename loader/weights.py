"""Weights in memory: one flat buffer a model, its tensors views into it.

Owns: where each tensor of a safetensors file goes in the buffer, and the views; both
worked out once for all models that share a header and a graph. Must not: fetch, hash,
copy or parse headers (loader/header.py).

A file whose tensors all start at a multiple of ALIGNMENT, relative to the data section,
is moved as one run: the buffer is the data section. Others (odd shapes of small dtypes
leave the next tensor misaligned) are placed tensor by tensor. Either way the file's
size bounds the buffer's: padding costs at most ALIGNMENT-1 bytes a tensor, and a
tensor's entry in the header is never shorter than that (`{"a":{"dtype":"U8","shape":[],
"data_offsets":[0,1]}}` is 50 bytes), so the bound is known from model.json alone.
"""

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from cachetools import LRUCache

from loader.errors import ArtifactRefused
from loader.graph import Graph, WeightSpec
from loader.header import Layout, Slot, read_header

ALIGNMENT = 16
"""Vectorised loads and cuBLAS want 16 bytes; torch's own views only the item size."""

MAX_REMEMBERED = 1 << 20
"""Bytes of a header that is remembered."""

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


def cuts(runs: Sequence[Run], at: int, nbytes: int) -> Iterator[tuple[int, int, int]]:
    """Of `nbytes` from `at` of the data section: (to, start, end) for each part that
    goes to `to` in the buffer. `at` is negative while they still hold the header."""
    first = bisect_right(runs, at, key=lambda run: run.end)
    for run in runs[first:]:
        start, end = max(run.start, at), min(run.end, at + nbytes)
        if start >= end:
            return
        yield run.to + start - run.start, start - at, end - at


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
        if slot.dtype != weight.dtype or slot.shape != weight.shape:
            raise ArtifactRefused(
                f"model.safetensors: tensor '{weight.name}'",
                f"is {_kind(slot.dtype, slot.shape)}, the graph wants "
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
    # An empty tensor lies anywhere; a misaligned "anywhere" would not divide.
    start = 0 if slot.end == slot.start else offset // slot.dtype.itemsize
    strides = torch.empty(slot.shape, dtype=slot.dtype, device="meta").stride()
    return slot.dtype, slot.shape, strides, start


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


@dataclass(frozen=True, slots=True, eq=False)
class Placed:
    """A header, read: where its file's bytes go. One object for all equal headers."""

    header: bytes
    layout: Layout
    placing: Placing


class Plans:
    """Headers read and views worked out, for the models that come next.

    Header and views of a model with 150 tensors take about 2 ms to work out and
    nothing to look up. One event loop.
    """

    def __init__(self, capacity: int = 256) -> None:
        self._placed: LRUCache[tuple[bytes, int], Placed] = LRUCache(capacity)
        self._views: LRUCache[tuple[str, Placed], tuple[View, ...]] = LRUCache(capacity)
        self._files: LRUCache[str, Placed] = LRUCache(16 * capacity)

    def placed(self, header: bytes, size: int) -> Placed | None:
        """What is known of a file of `size` bytes that begins with `header`."""
        return self._placed.get((header, size))

    def learn(self, header: bytes, size: int, placed: Placed) -> None:
        """Remember it; large headers (few models have one) are read each time."""
        if len(header) <= MAX_REMEMBERED:
            self._placed[header, size] = placed

    def of(self, identity: str) -> Placed | None:
        """What is known of this file, which was verified before."""
        return self._files.get(identity)

    def forget(self, identity: str) -> None:
        """The file is not what it was."""
        self._files.pop(identity, None)

    def verified(self, identity: str, placed: Placed) -> None:
        """This file begins with that header; not remembered if that is large."""
        if len(placed.header) <= MAX_REMEMBERED:
            self._files[identity] = placed

    def views(self, placed: Placed, graph: Graph) -> tuple[View, ...]:
        """The graph's weights in such a file. Raises ArtifactRefused."""
        key = graph.digest, placed
        found = self._views.get(key)
        if found is None:
            found = views(placed.layout, placed.placing, graph.weights)
            self._views[key] = found
        return found


def place(header: bytes | memoryview, size: int) -> Placed:
    """Read a header and plan its buffer. Raises ArtifactRefused."""
    layout = read_header(header, size)
    return Placed(bytes(header[: layout.data_start]), layout, placing(layout))


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
