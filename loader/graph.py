"""A model as a pure function over its weights: `graph.json`, read strictly.

Owns: the format (docs/format.md has it in words) and its reader. Must not: load
weights, know requests, or run anything while reading.

The reader builds a `torch.fx` graph and lets fx generate the `forward` that is the hot
path. Nothing of the file reaches that generated source but numbers, the few strings of
`ops.STRINGS`, dtypes and memory formats: names of values are ours (`v17`), and what is
called comes from the allow-list.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import fx

from loader.arguments import Arguments, Value
from loader.dtypes import DTYPES
from loader.errors import ArtifactRefused
from loader.generated import Forward, generate
from loader.header import MAX_TENSORS, WEIGHT_NAME, WEIGHT_NAME_MEANT
from loader.indexed import Indexed
from loader.manifest import MAX_TENSORS as MAX_INPUTS
from loader.manifest import TENSOR_NAME, ModelSpec
from loader.ops import Signature, signature
from loader.quick import quick
from loader.strictjson import (
    INT64_MAX,
    array,
    integer,
    members,
    parse,
    shown,
    text,
)

FORMAT = 1
PLACE = "graph.json"

MAX_GRAPH = 8 << 20
MAX_NODES = 20_000
"""The largest graph packed so far has 1,700; reading 100,000 took 6 s and 750 MB."""
MAX_RANK = 16

WEIGHT_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES.values()}
"""By torch's names; exactly what a header may hold."""

_NODE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_OP_NAME = re.compile(r"[A-Za-z0-9_.]{1,128}")


@dataclass(frozen=True, slots=True)
class WeightSpec:
    """One weight as the graph wants it."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]


@dataclass(slots=True, eq=False)
class Graph:
    """`graph(*weights, *inputs)` gives the outputs. Weights, inputs, outputs in order.

    `plain` is the generated function itself, of torch's own ops. `eager` is how it runs
    op after op: the same, or with ops that are quicker on this processor, set once
    before its first call (loader/linear.py). `forward` is what the hot path calls: that
    or machine code made of it, set by whoever made it (on the event loop: all models of
    the graph run it from their next call on). `digest`: SHA-256 of the file; two graphs
    of one digest are the same function. `rows`: of inputs that index a table, how many
    it has. Nothing else of it ever changes.
    """

    digest: str
    weights: tuple[WeightSpec, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    plain: Forward = field(repr=False)
    rows: Mapping[str, int] = field(default_factory=dict)
    eager: Forward = field(init=False, repr=False)
    forward: Forward = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.eager = self.forward = self.plain

    def __call__(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.forward(*tensors)

    def check(self, spec: ModelSpec) -> None:
        """Refuse a manifest whose inputs or outputs are not this graph's, in order, or
        that lets an index into a table go beyond it."""
        for key, ours, theirs in (
            ("inputs", self.inputs, spec.inputs),
            ("outputs", self.outputs, spec.outputs),
        ):
            if ours != tuple(tensor.name for tensor in theirs):
                raise ArtifactRefused(
                    f"model.json: {key}", f"the graph's are {', '.join(ours)}"
                )
        for tensor in spec.inputs:
            rows = self.rows.get(tensor.name)
            if rows is None:
                continue
            low, high = tensor.low, tensor.high
            if low is None or high is None or low < 0 or high >= rows:
                raise ArtifactRefused(
                    f"model.json: input {shown(tensor.name)}",
                    f"indexes a table: its range must lie within [0,{rows - 1}]",
                )


def read_graph(data: bytes, device: torch.device) -> Graph:
    """The graph of this `graph.json` for models on `device`, or ArtifactRefused."""
    document = members(
        parse(data, PLACE, MAX_GRAPH),
        PLACE,
        ("format", "weights", "inputs", "nodes", "outputs"),
    )
    integer(document["format"], f"{PLACE}: format", FORMAT, FORMAT)
    reader = _Reader(device)
    weights = reader.weights(document["weights"])
    inputs = reader.inputs(document["inputs"])
    reader.nodes(document["nodes"])
    outputs = reader.outputs(document["outputs"])
    digest = hashlib.sha256(data).hexdigest()
    forward = generate(reader.graph)
    return Graph(digest, weights, inputs, outputs, forward, reader.indexed.rows)


class _Reader:
    """The graph so far, and what its names stand for."""

    def __init__(self, device: torch.device) -> None:
        self.graph = fx.Graph()
        self._device = device
        self._values: dict[str, dict[str, Value]] = {
            "weight": {},
            "input": {},
            "node": {},
        }
        self._arguments = Arguments(self._values)
        self.indexed = Indexed()

    def weights(self, value: object) -> tuple[WeightSpec, ...]:
        """The weights, which come first in a call."""
        specs = []
        for index, item in enumerate(array(value, f"{PLACE}: weights", MAX_TENSORS)):
            spec = _weight(item, f"{PLACE}: weights[{index}]")
            made = self._declare("weight", spec.name, f"w{index}", f"weights[{index}]")
            self.indexed.weight(made, spec.shape)
            specs.append(spec)
        return tuple(specs)

    def inputs(self, value: object) -> tuple[str, ...]:
        """The inputs, which follow the weights."""
        names = []
        for index, item in enumerate(array(value, f"{PLACE}: inputs", MAX_INPUTS)):
            place = f"inputs[{index}]"
            name = _tensor_name(item, f"{PLACE}: {place}")
            self.indexed.input(self._declare("input", name, f"x{index}", place), name)
            names.append(name)
        return tuple(names)

    def _declare(self, role: str, name: str, ours: str, place: str) -> fx.Node:
        if name in self._values[role]:
            raise ArtifactRefused(f"{PLACE}: {place}", f"name {shown(name)} twice")
        made = self.graph.placeholder(ours)
        self._values[role][name] = Value(made, "tensor")
        return made

    def nodes(self, value: object) -> None:
        """The calls, each of which may use what stands before it."""
        for index, item in enumerate(array(value, f"{PLACE}: nodes", MAX_NODES)):
            self._node(index, item)

    def _node(self, index: int, value: object) -> None:
        place = f"{PLACE}: node {index}"
        found = members(value, place, ("name", "op", "args"), ("kwargs",))
        name = text(found["name"], place, _NODE_NAME, "a node's name")
        place = f"{place} '{name}'"
        if name in self._values["node"]:
            raise ArtifactRefused(place, "this name is taken")
        op = text(found["op"], place, _OP_NAME, "the name of an op")
        known = signature(op)
        if known is None:
            raise ArtifactRefused(place, f"op {op} is not allowed")
        args, kwargs = self._arguments.read(
            op, known, found["args"], found.get("kwargs", {}), place
        )
        made = self._call(op, known, f"v{index}", args, kwargs)
        self._values["node"][name] = Value(made, known.kind, known.gives)
        given = dict(zip((param.name for param in known.params), args, strict=False))
        self.indexed.call(op, {**given, **kwargs}, made)

    def _call(
        self,
        op: str,
        known: Signature,
        ours: str,
        args: tuple[fx.node.Argument, ...],
        kwargs: Mapping[str, fx.node.Argument],
    ) -> fx.Node:
        if isinstance(known.target, str):
            return self.graph.create_node("call_method", known.target, args, name=ours)
        placed = {"device": self._device} if known.makes else {}
        return self.graph.create_node(
            "call_function",
            quick(op, kwargs) or known.target,
            args,
            {**kwargs, **placed},
            name=ours,
        )

    def outputs(self, value: object) -> tuple[str, ...]:
        """What the graph returns, by the names of the manifest."""
        names: list[str] = []
        results: list[fx.Node] = []
        for index, item in enumerate(array(value, f"{PLACE}: outputs", MAX_INPUTS)):
            place = f"{PLACE}: outputs[{index}]"
            found = members(item, place, ("name", "value"))
            name = _tensor_name(found["name"], f"{place}.name")
            if name in names:
                raise ArtifactRefused(place, f"name {shown(name)} twice")
            names.append(name)
            results.append(self._arguments.tensor(found["value"], f"{place}.value"))
        if not names:
            raise ArtifactRefused(f"{PLACE}: outputs", "must have at least one")
        self.graph.output(tuple(results))
        return tuple(names)


def _tensor_name(value: object, place: str) -> str:
    return text(value, place, TENSOR_NAME, "printable ASCII without spaces")


def _weight(value: object, place: str) -> WeightSpec:
    found = members(value, place, ("name", "dtype", "shape"))
    name = text(found["name"], f"{place}.name", WEIGHT_NAME, WEIGHT_NAME_MEANT)
    kind = found["dtype"]
    dtype = WEIGHT_DTYPES.get(kind) if isinstance(kind, str) else None
    if dtype is None:
        raise ArtifactRefused(f"{place}.dtype", f"{shown(kind)} is no dtype")
    shape = tuple(
        integer(dim, f"{place}.shape", 0, INT64_MAX)
        for dim in array(found["shape"], f"{place}.shape", MAX_RANK)
    )
    return WeightSpec(name, dtype, shape)
