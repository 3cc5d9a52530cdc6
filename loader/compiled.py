"""Machine code made of a graph, called in the graph's place.

Owns: the terms it was compiled on (dtypes, sizes), which every call is checked against
because the code itself checks nothing; and what happens when it fails. Must not:
compile (loader/compile_worker.py), or decide what is worth it (runtime/compiler.py).

The code is a shared library of AOTInductor's. A call that does not meet the terms runs
the eager graph, quietly. A call that fails runs the eager graph too: if that fails as
well it was the request's fault, if not the code is retired for good.
"""

import ctypes
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch._C import _aoti

from loader.generated import Forward

Tensors = tuple[torch.Tensor, ...]
Sizes = tuple[torch.Size, ...]

SHORT_S = 200e-6
"""A call this short keeps the GIL: handing it over costs 7 us and more, which is most
of what an MLP takes; a longer one would stop every other thread."""

RECENT = 0.3
"""The weight of the last call in what is expected of the next."""

MOST_SIZES = 4096
"""Sizes of inputs remembered as meeting the terms."""

Dim = int | str


@dataclass(frozen=True, slots=True)
class Term:
    """One input: its dtype and sizes; a size by name is free, and the same wherever
    that name stands."""

    dtype: torch.dtype
    dims: tuple[Dim, ...]


@dataclass(frozen=True, slots=True)
class Terms:
    """What a call must look like. `ranges`: the least and most of each free size."""

    inputs: tuple[Term, ...]
    ranges: Mapping[str, tuple[int, int]]
    outputs: int

    def meet(self, shapes: Sequence[torch.Size]) -> bool:
        """True if inputs of these sizes are such as it was compiled for."""
        if len(shapes) != len(self.inputs):
            return False
        free: dict[str, int] = {}
        for shape, term in zip(shapes, self.inputs, strict=True):
            if len(shape) != len(term.dims):
                return False
            for size, dim in zip(shape, term.dims, strict=True):
                if size != (
                    free.setdefault(dim, size) if isinstance(dim, str) else dim
                ):
                    return False
        return all(
            low <= free.get(name, low) <= high
            for name, (low, high) in self.ranges.items()
        )


class CodeFailed(Exception):
    """The compiled code reported an error; its text went to standard error."""


class Code(Protocol):
    """Machine code of one graph. `tensors`: weights and inputs, on its terms."""

    def held(self, tensors: Tensors) -> Tensors:
        """The outputs; the GIL is kept."""
        ...

    def freed(self, tensors: Tensors) -> Tensors:
        """The outputs; other threads run meanwhile."""
        ...


class Library:
    """A shared library of AOTInductor's, loaded; it stays so. `at_once`: calls."""

    def __init__(self, path: Path, weights: int, terms: Terms, at_once: int) -> None:
        self._count = weights + len(terms.inputs)
        self._outputs = terms.outputs
        # Two containers: who holds the GIL must not wait for one who needs it.
        self._runner = _aoti.AOTIModelContainerRunnerCpu(str(path), 1)
        library = ctypes.CDLL(str(path))
        self._container = ctypes.c_void_p()
        create = library.AOTInductorModelContainerCreateWithDevice
        create.argtypes = (
            ctypes.POINTER(ctypes.c_void_p),
            ctypes.c_size_t,
            ctypes.c_char_p,
            ctypes.c_char_p,
        )
        if create(ctypes.byref(self._container), at_once, b"cpu", None):
            raise CodeFailed("the compiled code does not start")
        self._run = library.AOTInductorModelContainerRun
        self._run.argtypes = (
            *(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t),
            *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_void_p),
        )
        self._handles = ctypes.c_void_p * self._count
        self._results = ctypes.c_void_p * self._outputs

    def held(self, tensors: Tensors) -> Tensors:
        """Run it as torch's own binding does."""
        return tuple(self._runner.run(list(tensors)))

    def freed(self, tensors: Tensors) -> Tensors:
        """Run it without the GIL, which torch's own binding (2.13) keeps."""
        capsules = _aoti.unsafe_alloc_void_ptrs_from_tensors(list(tensors))
        handles = self._handles(*[_pointer(capsule, None) for capsule in capsules])
        results = self._results()
        if self._run(
            self._container, handles, self._count, results, self._outputs, None, None
        ):
            raise CodeFailed("the compiled code reported an error")
        taken = [_capsule(handle, None, None) for handle in results]
        return tuple(_aoti.alloc_tensors_by_stealing_from_void_ptrs(taken))


_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)
_capsule = ctypes.PYFUNCTYPE(
    ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p
)(("PyCapsule_New", ctypes.pythonapi))


class Compiled:
    """Takes the place of a graph's `forward`. Called from any lane, and from the loop;
    what it remembers is single entries of a dict, which the GIL keeps whole."""

    def __init__(self, eager: Forward, code: Code, weights: int, terms: Terms) -> None:
        self._eager = eager
        self._code = code
        self._weights = weights
        self._terms = terms
        self._dtypes = tuple(term.dtype for term in terms.inputs)
        self._count = weights + len(terms.inputs)
        self._seconds: dict[Sizes | None, float] = {}
        self.failure = ""
        """Why it is retired; empty while it is not."""
        self.calls = 0
        """Calls that the code answered; about, for several threads count."""
        self.declined = 0
        """Calls that did not meet the terms, or that no code could have answered."""

    def __call__(self, *tensors: torch.Tensor) -> Tensors:
        """The outputs, of the code where it can be."""
        sizes = self._sizes(tensors)
        seconds = -1.0 if sizes is None else self._seconds.get(sizes)
        if seconds is None:
            seconds = self._first(sizes)
        if seconds < 0.0 or self.failure:
            self.declined += 1
            return self._eager(*tensors)
        run = self._code.held if seconds < SHORT_S else self._code.freed
        began = time.perf_counter()
        try:
            outputs = run(tensors)
        except Exception as error:  # noqa: BLE001 - whatever it is, eager is asked
            return self._without(tensors, error)
        # Bounded: a call that was preempted says little about the next one.
        took = min(time.perf_counter() - began, 2 * SHORT_S)
        self._seconds[sizes] = seconds + (took - seconds) * RECENT
        self.calls += 1
        return outputs

    def _sizes(self, tensors: Tensors) -> Sizes | None:
        """The sizes of the inputs; None where the code would misread one."""
        if len(tensors) != self._count:
            return None
        sizes = []
        for dtype, tensor in zip(self._dtypes, tensors[self._weights :], strict=True):
            if tensor.dtype is not dtype or not tensor.is_contiguous():
                return None
            sizes.append(tensor.shape)
        return tuple(sizes)

    def _first(self, sizes: Sizes | None) -> float:
        """Sizes not seen before: seconds they may take, below 0 if not on our terms."""
        if sizes is None:
            return -1.0
        if len(self._seconds) >= MOST_SIZES:
            self._seconds.clear()
        self._seconds[sizes] = seconds = (
            2 * SHORT_S if self._terms.meet(sizes) else -1.0
        )
        return seconds

    def _without(self, tensors: Tensors, error: Exception) -> Tensors:
        self.declined += 1
        outputs = self._eager(*tensors)  # fails too: then the request was wrong
        self.failure = f"failed in service ({type(error).__name__}), eager did not"
        return outputs
