"""oneDNN, the other library for matrices that torch has on a CPU.

    compared    where it is quicker than MKL, on this processor: measured
    OneDnn      layers that run there, for a bounded number of sizes

Owns: the measurement, its operator, and what it keeps in memory for us. Must not: know
graphs (loader/linear.py), or change what a layer computes, but for the order in which
it adds up.

torch hands float32 matrices to MKL, which on an EPYC (Zen 5) did half of what it can:
32 rows by 384 x 1536 took 395 us, and 212 in oneDNN. But oneDNN costs 10 us more a
call, and it writes machine code for each number of rows of each layer, 0.5 ms and 0.6
to 0.75 MB of heap. So rows are made up to one of a few numbers, and a process has so
many of these at most (docs/decisions/0026-kernels-of-linear-layers.md).

`onednn_from`, here and wherever it is handed on: multiplications from which a layer
runs in oneDNN; 0: none does.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import structlog
import torch

log = structlog.get_logger()

Layer = Callable[..., torch.Tensor]
Clock = Callable[[], float]

LEAST_ROWS = 4
"""One row is bound by memory, and for two or three MKL reads the weights no more often
than oneDNN."""

PAYS = 1.2
"""How much quicker oneDNN must be at a large layer. Below it the noise decides."""

MARGIN = 2.0
"""How much more must be saved than the dearer call costs: rows are made up besides, and
what gains next to nothing need not take memory."""

FEWEST, MOST = 1 << 18, 1 << 26
"""The threshold lies between them: below are layers that nobody measured, and beyond
hardly any of a small model's."""

ROWS_A_CALL = 512
"""Rows of one call; more are several: a layer has 27 numbers of rows at most."""

KEPT, KEPT_EACH = 256, 96
"""Sizes for which oneDNN is asked to write code, and those that one graph may have of
them: callers choose the rows, and nothing is given back (oneDNN forgets after 512, but
the heap stays as large). Some 200 MB."""

WARM_UPS = 3
ROUNDS = 12
_SMALL, _LARGE = (8, 64, 64), (32, 768, 768)

torch_linear = cast(Layer, torch._C._nn.linear)
_pad = torch._C._VariableFunctions.constant_pad_nd


@dataclass(frozen=True, slots=True)
class Compared:
    """`speedup`: MKL's time by oneDNN's at a large layer. `reason`: why none goes
    there; empty if they do."""

    onednn_from: int
    speedup: float = 1.0
    reason: str = ""


def operator() -> Layer | None:
    """A linear layer of oneDNN's, which torch's own compiler uses; None if this torch
    lacks it. It is not documented, and does not look at a bias's strides."""
    found = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    return None if found is None else cast(Layer, found.default)


Size = tuple[int, ...]
"""Rows (made up), numbers a row, outputs, whether there is a bias, the weight's step:
each of them is code of its own."""


class Full(Exception):
    """There are as many sizes as there may be."""


class OneDnn:
    """oneDNN in this process: where it is used from, and the sizes that it has met."""

    def __init__(self, onednn_from: int, layer: Layer) -> None:
        self.onednn_from = onednn_from
        self.layer = layer
        self.sizes: set[Size] = set()
        self._said = False

    def full(self) -> None:
        """Says so, once: from now on new sizes are as slow as without oneDNN."""
        if not self._said:
            self._said = True
            log.warning("oneDNN is asked for no more sizes", sizes=len(self.sizes))


def open_onednn(onednn_from: int) -> OneDnn | None:
    """oneDNN from so much work on; None for 0, or if this torch lacks its operator."""
    layer = operator()
    return OneDnn(onednn_from, layer) if onednn_from and layer is not None else None


class Share:
    """One graph's use of it. Called from any lane, and from the loop."""

    def __init__(self, whole: OneDnn) -> None:
        self._whole = whole
        self._layer = whole.layer
        self._sizes: set[Size] = set()

    def linear(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """The layer's outputs. float32; the last dimensions fit, and the bias is
        contiguous. Raises Full; RuntimeError: it cannot."""
        deep, wide = weight.shape[1], weight.shape[0]
        rows = x.numel() // deep
        if rows > ROWS_A_CALL:
            flat = x.reshape(rows, deep)
            # The rest first: if its size is one too many, nothing was done in vain.
            parts = [
                self.linear(flat[at : at + ROWS_A_CALL], weight, bias)
                for at in reversed(range(0, rows, ROWS_A_CALL))
            ]
            return torch.cat(parts[::-1]).view(*x.shape[:-1], wide)
        made_up = rows_for(max(rows, LEAST_ROWS))
        size = made_up, deep, wide, bias is None, weight.stride(0)
        new = size not in self._sizes
        if new and (len(self._sizes) >= KEPT_EACH or self._is_full(size)):
            self._whole.full()
            raise Full
        if made_up == rows:
            given = self._layer(x, weight, bias, "none", [], "")
        else:
            filled = _pad(x.reshape(rows, deep), (0, 0, 0, made_up - rows))
            given = self._layer(filled, weight, bias, "none", [], "")
            given = given[:rows].view(*x.shape[:-1], wide)
        if new:
            self._sizes.add(size)
            self._whole.sizes.add(size)
        return given

    def _is_full(self, size: Size) -> bool:
        sizes = self._whole.sizes
        return len(sizes) >= KEPT and size not in sizes


def rows_for(rows: int) -> int:
    """So many, or some more, a fourth at most: four numbers from each power of two to
    the next, and every second one up to 16."""
    step = 1 << max((rows - 1).bit_length() - 3, 1)
    return -(-rows // step) * step


def compared(layer: Layer | None, clock: Clock = time.thread_time) -> Compared:
    """Where `layer`, oneDNN's operator, is quicker. Takes 15 ms of one core; by the
    time that the thread has one, so it finds the same on a busy machine."""
    if layer is None:
        return Compared(0, reason="this torch has no oneDNN operator")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            small = _quickest(layer, clock, *_SMALL)
            large = _quickest(layer, clock, *_LARGE)
    except RuntimeError:
        return Compared(0, reason="this torch was built without oneDNN")
    finally:
        torch.set_num_threads(threads)
    return crossover(small, large)


def crossover(small: tuple[float, float], large: tuple[float, float]) -> Compared:
    """Where a layer begins to gain, of the seconds that a small one and a large one
    take in (MKL, oneDNN): a call costs so much more, each multiplication so much less.
    """
    speedup = large[0] / large[1]
    if speedup < PAYS:
        return Compared(0, speedup, "not quicker here")
    saved = (large[0] - large[1]) / math.prod(_LARGE)
    pays = MARGIN * (small[1] - small[0]) / saved
    # To the nearest power of two: servers of one kind of machine choose alike, mostly.
    found = 1 << round(math.log2(max(pays, FEWEST)))
    if found > MOST:
        return Compared(0, speedup, "quicker only at layers that are hardly met")
    return Compared(found, speedup)


def _quickest(
    layer: Layer, clock: Clock, rows: int, deep: int, wide: int
) -> tuple[float, float]:
    """The least seconds of a layer in MKL and in oneDNN, in turns."""
    x, weight = torch.full((rows, deep), 0.5), torch.full((wide, deep), 0.5)
    bias, found = torch.full((wide,), 0.5), [math.inf, math.inf]
    for number in range(WARM_UPS + ROUNDS):
        for index in range(2):
            began = clock()
            if index:
                layer(x, weight, bias, "none", [], "")
            else:
                torch_linear(x, weight, bias)
            if number >= WARM_UPS:
                found[index] = min(found[index], clock() - began)
    return found[0], found[1]
