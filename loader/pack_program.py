"""What torch.export found: its graph, its weights by name, its inputs and outputs.

Owns: reading an `ExportedProgram`. Must not: export, or translate calls
(loader/pack_normalise.py).
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind, TensorArgument

from loader.header import WEIGHT_NAME, WEIGHT_NAME_MEANT
from loader.manifest import TensorSpec
from loader.pack_errors import PackRefused
from loader.pack_nodes import Json
from loader.pack_normalise import writes
from loader.pack_weights import PADDING

OIP = {
    torch.bool: "BOOL",
    torch.uint8: "UINT8",
    torch.uint16: "UINT16",
    torch.uint32: "UINT32",
    torch.uint64: "UINT64",
    torch.int8: "INT8",
    torch.int16: "INT16",
    torch.int32: "INT32",
    torch.int64: "INT64",
    torch.float16: "FP16",
    torch.bfloat16: "BF16",
    torch.float32: "FP32",
    torch.float64: "FP64",
}


@dataclass(frozen=True, slots=True)
class Program:
    """`references`: placeholder -> what graph.json calls it. `tied`: second names of a
    weight -> its first. `places`: which of the graph's outputs are the module's."""

    module: fx.GraphModule
    references: Mapping[str, Json]
    weights: Mapping[str, torch.Tensor]
    tied: Mapping[str, str]
    inputs: Mapping[str, fx.Node]
    outputs: Sequence[fx.Node]
    places: Sequence[int]


def read_program(found: ExportedProgram, names: Sequence[str]) -> Program:
    """`names`: of the inputs, in the order they were exported in."""
    program = _functional(found)
    module = program.graph_module
    nodes = {node.name: node for node in module.graph.nodes}
    references: dict[str, Json] = {}
    weights: dict[str, torch.Tensor] = {}
    tied: dict[str, str] = {}
    inputs: dict[str, fx.Node] = {}
    waiting = iter(names)
    for spec in program.graph_signature.input_specs:
        if spec.kind is InputKind.USER_INPUT:
            name = next(waiting, "")
            inputs[name] = nodes[spec.arg.name]
            references[spec.arg.name] = {"input": name}
            continue
        weight = _weight_name(spec.target, spec.kind)
        tensor = program.state_dict.get(weight, program.constants.get(weight))
        if not isinstance(tensor, torch.Tensor):
            raise PackRefused(f"'{weight}' is not a tensor: a model is tensors only")
        first = tied.get(weight) or _same(tensor, weights) or weight
        if first == weight:
            weights[weight] = tensor.detach()
        else:
            tied[weight] = first
        references[spec.arg.name] = {"weight": first}
    if len(inputs) != len(names):
        raise PackRefused(f"the program has {len(inputs)} inputs, not {len(names)}")
    places = _output_places(program)
    results = list(module.graph.nodes)[-1].args[0]
    outputs = [results[place] for place in places]
    return Program(module, references, weights, tied, inputs, outputs, places)


def _functional(program: ExportedProgram) -> ExportedProgram:
    """The same program without a call that writes to an argument."""
    if writes(program.graph_module):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch speaks to those who work on torch
            program = program.run_decompositions({})
    for spec in program.graph_signature.output_specs:
        if spec.kind is OutputKind.BUFFER_MUTATION:
            raise PackRefused(
                f"the module writes to its buffer '{spec.target}' in forward; a model "
                "that serves keeps no state"
            )
    return program


def _weight_name(target: str | None, kind: InputKind) -> str:
    if target is None or kind in (InputKind.TOKEN, InputKind.CUSTOM_OBJ):
        raise PackRefused(f"the module holds an object that is no tensor ({target})")
    if WEIGHT_NAME.fullmatch(target) is None or target.startswith(PADDING):
        raise PackRefused(
            f"weight name '{target}': must be {WEIGHT_NAME_MEANT} and not begin with "
            f"'{PADDING}'"
        )
    return target


def _same(tensor: torch.Tensor, weights: Mapping[str, torch.Tensor]) -> str | None:
    """The name under which this very tensor is known already."""
    for name, other in weights.items():
        if tensor.numel() and _identity(tensor) == _identity(other):
            return name
    return None


def _identity(tensor: torch.Tensor) -> tuple[object, ...]:
    return (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())


def _output_places(program: ExportedProgram) -> list[int]:
    places = []
    for place, spec in enumerate(program.graph_signature.output_specs):
        if spec.kind is not OutputKind.USER_OUTPUT:
            continue
        if isinstance(spec.arg, TensorArgument):
            places.append(place)
        elif getattr(spec.arg, "value", ...) is not None:
            raise PackRefused("the module returns a number; outputs must be tensors")
    return places


def tensor_spec(name: str, node: fx.Node, at_most: Sequence[int] = ()) -> TensorSpec:
    """What the manifest says of an input or output: free dimensions are -1."""
    value = node.meta["val"]
    if value.dtype not in OIP:
        raise PackRefused(f"'{name}' is {value.dtype}, which the protocol cannot carry")
    shape = tuple(dim if isinstance(dim, int) else -1 for dim in value.shape)
    limits = tuple(at_most)
    if limits and len(limits) != len(shape):
        raise PackRefused(f"limits of '{name}': {len(limits)} for {len(shape)} dims")
    if all(limit == -1 for limit in limits):
        limits = ()
    return TensorSpec(name, OIP[value.dtype], shape, max_shape=limits)
