"""From a module to a graph: torch.export, once for every model of an architecture.

Owns: the export, and what it tells of inputs, outputs and weights. Must not: write
files (loader/pack_write.py).
"""

import contextlib
import io
import os
import re
import traceback
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.export import Dim, ExportedProgram
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from loader.errors import ArtifactRefused
from loader.graph import Graph, read_graph
from loader.manifest import TensorSpec
from loader.pack_errors import PackRefused
from loader.pack_graph import graph_bytes
from loader.pack_normalise import normalise
from loader.pack_original import Original, serving
from loader.pack_program import read_program, tensor_spec
from loader.pack_trial import Trial, trials

_NOISE = re.compile(
    r" (?=For more information|The error above|consider using data-dependent)"
)

MIN_ROWS = 2
"""torch.export takes a batch of one for the constant 1."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the caller says about a model beyond the module itself.

    `dynamic`: free dimensions of an input besides the batch. `ranges`: the values an
    integer input may have. `limits`: the largest size of an input's free dimensions.
    """

    outputs: Sequence[str] | None = None
    max_batch_size: int = 64
    dynamic: Mapping[str, Sequence[int]] | None = None
    ranges: Mapping[str, tuple[int, int]] | None = None
    limits: Mapping[str, Sequence[int]] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Exported:
    """An architecture, ready to be written with any number of weights.

    `weights`: the module's own, by the names of the graph, in its order. `tied`: other
    names of the same tensors.
    """

    original: Original
    graph: Graph
    graph_json: bytes
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch_size: int
    weights: Mapping[str, torch.Tensor]
    tied: Mapping[str, str]
    trials: tuple[Trial, ...]
    switched: bool = False
    """It was given in training mode, and is packed in eval mode."""


def export(
    module: nn.Module,
    inputs: Mapping[str, torch.Tensor],
    *,
    outputs: Sequence[str] | None = None,
    max_batch_size: int = 64,
    dynamic: Mapping[str, Sequence[int]] | None = None,
    ranges: Mapping[str, tuple[int, int]] | None = None,
    limits: Mapping[str, Sequence[int]] | None = None,
) -> Exported:
    """Export a module (switched to eval) that answers `inputs`, by name or in order.

    Dimension 0 of every input is the batch unless `max_batch_size` is 0. See `Wishes`
    for the rest. Raises PackRefused.
    """
    wishes = Wishes(outputs, max_batch_size, dynamic, ranges, limits)
    training = any(part.training for part in module.modules())
    original = Original.of(module.eval(), tuple(inputs))
    examples = _grown(inputs, max_batch_size)
    free = {
        name: {*([0] if max_batch_size else []), *(dynamic or {}).get(name, ())}
        for name in inputs
    }
    program = _traced(original, examples, free)
    made = exported(program, original, examples, wishes)
    return replace(made, switched=training)


def _grown(
    inputs: Mapping[str, torch.Tensor], max_batch_size: int
) -> tuple[torch.Tensor, ...]:
    """The examples, with enough rows for an export."""
    if not inputs:
        raise PackRefused("a model needs at least one input")
    if not max_batch_size:
        return tuple(inputs.values())
    rows = {name: tensor.shape[:1] for name, tensor in inputs.items()}
    if len(set(rows.values())) != 1 or () in rows.values():
        raise PackRefused(
            f"the first dimension of the examples is the batch and must agree: {rows}"
        )
    return tuple(
        tensor.index_select(0, torch.arange(max(MIN_ROWS, len(tensor))) % len(tensor))
        for tensor in inputs.values()
    )


def _traced(
    original: Original,
    examples: Sequence[torch.Tensor],
    free: Mapping[str, set[int]],
) -> ExportedProgram:
    args, kwargs = original.arguments(examples)
    dims = {
        name: dict.fromkeys(sorted(free[name]), Dim.DYNAMIC) for name in original.names
    }
    # torch writes the graph it has so far to standard error when it gives up.
    said = io.StringIO()
    with serving(), warnings.catch_warnings(), contextlib.redirect_stderr(said):
        warnings.simplefilter("ignore")  # torch speaks to those who work on torch
        try:
            return torch.export.export(
                original.module, args, kwargs, dynamic_shapes=original.shapes(dims)
            )
        except GuardOnDataDependentSymNode as error:
            raise PackRefused(
                f"the module decides by the values of a tensor{line_of(error)}: an "
                "`if`, a `while`, an int() or a slice by a tensor cannot be exported; "
                "write it with torch.where, or decide outside the model"
            ) from error
        except Exception as error:  # tracing runs the owner's code
            text, *_ = _NOISE.split(" ".join(str(error).split()))
            raise PackRefused(
                f"torch.export cannot trace the module{line_of(error)}: {text[:400]} "
                "(the sizes of free dimensions must not be fixed, nor may Python "
                "decide by a tensor's values)"
            ) from error


def line_of(error: BaseException) -> str:
    """The last line that is not torch's: where the owner has to look."""
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [
        frame
        for frame in frames
        if f"{os.sep}torch{os.sep}" not in frame.filename and frame.filename != __file__
    ]
    if not theirs:
        return ""
    return f" ({os.path.basename(theirs[-1].filename)}, line {theirs[-1].lineno})"


def exported(
    found: ExportedProgram,
    original: Original,
    examples: Sequence[torch.Tensor],
    wishes: Wishes,
) -> Exported:
    """The graph of a program, and everything a manifest needs to say about it."""
    program = read_program(found, original.names)
    written = normalise(program.module, program.references, program.places)
    weights = {
        name: tensor
        for name, tensor in program.weights.items()
        if name in written.weights
    }
    names = wishes.outputs or list(original.run(examples))
    if len(names) != len(program.places):
        raise PackRefused(f"{len(program.places)} outputs, {len(names)} names for them")
    text = graph_bytes(written, weights, original.names, names)
    outputs = tuple(map(tensor_spec, names, program.outputs))
    graph = _read(text)
    rows = {name: (0, count - 1) for name, count in graph.rows.items()}
    inputs = tuple(
        _ranged(
            tensor_spec(
                name, program.inputs[name], (wishes.limits or {}).get(name, ())
            ),
            rows.get(name),
            (wishes.ranges or {}).get(name),
        )
        for name in original.names
    )
    if wishes.max_batch_size:
        _check_batch((*inputs, *outputs))
    return Exported(
        original=original,
        graph=graph,
        graph_json=text,
        inputs=inputs,
        outputs=outputs,
        max_batch_size=wishes.max_batch_size,
        weights=weights,
        tied={a: b for a, b in program.tied.items() if b in weights},
        trials=trials(inputs, examples, bool(wishes.max_batch_size)),
    )


def _read(text: bytes) -> Graph:
    try:
        return read_graph(text, torch.device("cpu"))
    except ArtifactRefused as error:
        raise PackRefused(f"the exported graph cannot be served: {error}") from error


def _ranged(
    spec: TensorSpec, rows: tuple[int, int] | None, wish: tuple[int, int] | None
) -> TensorSpec:
    """The narrower of what the tables have and what the caller allows."""
    if rows is None and wish is None:
        return spec
    if "INT" not in spec.datatype:
        raise PackRefused(f"input '{spec.name}' is {spec.datatype}: it has no range")
    low = max(pair[0] for pair in (rows, wish) if pair)
    high = min(pair[1] for pair in (rows, wish) if pair)
    if low > high:
        raise PackRefused(f"input '{spec.name}': no value is in its range")
    return replace(spec, low=low, high=high)


def _check_batch(specs: Sequence[TensorSpec]) -> None:
    for spec in specs:
        if spec.shape[:1] != (-1,):
            raise PackRefused(
                f"'{spec.name}' is {list(spec.shape)}: the first dimension must be the "
                "batch, free and the same for all; or pack with max_batch_size=0"
            )
