"""From a graph to a shared library: torch.export, then AOTInductor.

Owns: the export, the terms that follow from it, and the options of the compiler. Must
not: read or write any file but the compiler's own, or run what it made. Only the worker
imports this (loader/compile_worker.py).

What is compiled is the graph that the strict reader made: ops of the allow-list, names
of ours, numbers. No text of the file reaches the generated source
(tests/test_compile_graph.py looks).

Sizes of one: an export takes free sizes to be 2 at least. What it makes is right for 1
where nothing in the graph treats 1 as special, which the trial sees, and never reads
out of bounds there: every index it computes is below a size that is checked.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch._inductor
from torch.export import Dim, ExportedProgram
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._sympy.value_ranges import bound_sympy

from loader.compile_job import JobInput
from loader.compiled import Dim as Size
from loader.compiled import Term, Terms
from loader.graph import Graph

LARGEST = 1 << 31
"""Of a free size that the manifest does not bound."""

OPTIONS: dict[str, object] = {
    # One thread: an index out of bounds raises, and an exception that leaves an OpenMP
    # region ends the process. What takes long is in kernels that share themselves out.
    "cpp.threads": 1,
    "assert_indirect_indexing": True,
    "aot_inductor.precompile_headers": False,
    "aot_inductor.package": False,
}


class NotCompiled(Exception):
    """This graph has no compiled form; says why."""


@dataclass(frozen=True, slots=True)
class Made:
    """A shared library at `path`, and what it may be called with."""

    path: Path
    terms: Terms


class _Function(torch.nn.Module):
    """The graph as torch.export wants it."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self._run = graph.plain

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Outputs of weights and inputs."""
        return self._run(*tensors)


def compile_graph(
    graph: Graph,
    weights: Sequence[torch.Tensor],
    examples: Sequence[torch.Tensor],
    inputs: Sequence[JobInput],
    folder: Path,
) -> Made:
    """Compile into `folder`. `examples`: free sizes of 2 and more. NotCompiled."""
    tensors = (*weights, *examples)
    fixed = [dict.fromkeys(range(w.dim()), Dim.STATIC) for w in weights]
    free = [
        {dim: Dim.DYNAMIC for dim, size in enumerate(item.shape) if size == -1}
        for item in inputs
    ]
    with torch.no_grad():
        program = torch.export.export(
            _Function(graph), tensors, dynamic_shapes=((*fixed, *free),)
        )
    sizes = _environment(program)
    terms = _terms(program, sizes, len(weights), inputs)
    made = torch._inductor.aot_compile(
        program.module(check_guards=False),
        tensors,
        options={**OPTIONS, "aot_inductor.output_path": str(folder / "graph.so")},
    )
    # The compiler may have decided by a size as well; its code would not ask again.
    _check_guards(sizes)
    if not isinstance(made, str):
        raise NotCompiled("the compiler gave no library")
    _check_self_contained(folder)
    return Made(Path(made), terms)


def _environment(program: ExportedProgram) -> ShapeEnv | None:
    """What the export knows of sizes; None if none is free."""
    for node in program.graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor):
            return getattr(getattr(value, "fake_mode", None), "shape_env", None)
    return None


def _terms(
    program: ExportedProgram,
    sizes: ShapeEnv | None,
    weights: int,
    inputs: Sequence[JobInput],
) -> Terms:
    _check_guards(sizes)
    places = [node for node in program.graph.nodes if node.op == "placeholder"]
    named: dict[object, str] = {}
    ranges: dict[str, tuple[int, int]] = {}
    terms = []
    for node, item in zip(places[weights:], inputs, strict=True):
        dims: list[Size] = []
        for size, most in zip(node.meta["val"].shape, item.most, strict=True):
            if isinstance(size, int):
                dims.append(size)
                continue
            symbol = _symbol(size, sizes)
            name = named.setdefault(symbol, f"s{len(named)}")
            _, known = ranges.get(name, (1, LARGEST))
            found = program.range_constraints[symbol].upper
            upper = int(found) if found.is_Integer else LARGEST
            bounded = LARGEST if most == -1 else most
            ranges[name] = (1, min(known, upper, bounded))
            dims.append(name)
        terms.append(Term(item.dtype, tuple(dims)))
    return Terms(tuple(terms), ranges, len(program.graph_signature.user_outputs))


def _symbol(size: torch.SymInt, sizes: ShapeEnv | None) -> object:
    expression = size.node.expr
    if sizes is not None:
        expression = sizes.simplify(expression)
    if not expression.is_Symbol:
        raise NotCompiled(f"an input's size must be {expression}")
    return expression


def _check_guards(sizes: ShapeEnv | None) -> None:
    """What was decided by a size must follow from the sizes' names and ranges."""
    if sizes is None:
        return
    for guard in sizes.guards:
        condition = sizes.simplify(guard.expr)
        ranges = {s: sizes.var_to_range[s] for s in condition.free_symbols}
        bounds = bound_sympy(condition, ranges)
        if not (bounds.is_singleton() and bool(bounds.lower) is True):
            raise NotCompiled(f"it is special where {guard.expr} does not hold")


def _check_self_contained(folder: Path) -> None:
    """Some ops are compiled into calls of Python's dispatcher, which we do not give."""
    for source in _sources(folder):
        if "aoti_torch_proxy_executor_call_function(" in source:
            raise NotCompiled("one of its ops has no compiled form")


def _sources(folder: Path) -> Iterable[str]:
    for path in folder.rglob("*.wrapper.cpp"):
        yield path.read_text()
