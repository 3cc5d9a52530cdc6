"""Where the bytes of a safetensors file go: one flat buffer a model.

Owns: where each tensor goes in the buffer, worked out once for all files that share a
header. Must not: fetch, hash, copy, parse headers (loader/header.py), or need torch.

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

from cachetools import LRUCache

from loader.header import Layout, read_header

ALIGNMENT = 16
"""Vectorised loads and cuBLAS want 16 bytes; torch's own views only the item size."""

MAX_REMEMBERED = 1 << 20
"""Bytes of a header that is remembered."""


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


@dataclass(frozen=True, slots=True, eq=False)
class Placed:
    """A header, read: where its file's bytes go. One object for all equal headers."""

    header: bytes
    layout: Layout
    placing: Placing


def place(header: bytes | memoryview, size: int) -> Placed:
    """Read a header and plan its buffer. Raises ArtifactRefused."""
    layout = read_header(header, size)
    return Placed(bytes(header[: layout.data_start]), layout, placing(layout))


class Placings:
    """Headers that were read, for the files that come next.

    The header of a model with 150 tensors takes about 1 ms to work out and nothing to
    look up. One event loop.
    """

    def __init__(self, capacity: int = 256) -> None:
        self._placed: LRUCache[tuple[bytes, int], Placed] = LRUCache(capacity)
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
