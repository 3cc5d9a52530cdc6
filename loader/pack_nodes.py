"""The nodes of a `graph.json` being written.

Owns: equal calls becoming one, what no output needs going away, names. Must not: know
torch.export or what calls mean.

Every node is a pure call, so two equal ones are one, and one that no output needs is
none. A call that cannot be written is kept with its `problem` and only refused when an
output turns out to need it.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from loader.ops import signature
from loader.pack_errors import PackRefused

T = TypeVar("T")

Json = object
"""A value as it will stand in graph.json, or a `Problem`."""


@dataclass(frozen=True, slots=True)
class Problem:
    """In place of a value: why there is none, and where in the model."""

    why: str
    at: str


@dataclass(frozen=True, slots=True)
class Node:
    """One call. References to other nodes are by number until `finish` names them."""

    op: str
    args: Sequence[Json]
    kwargs: Mapping[str, Json]
    problem: Problem | None = None


@dataclass(frozen=True, slots=True)
class Written:
    """What `graph.json` will hold: nodes, outputs, and the weights they use."""

    nodes: list[dict[str, Json]]
    outputs: list[Json]
    weights: frozenset[str]


@dataclass(slots=True)
class Nodes:
    """The calls so far."""

    calls: list[Node] = field(default_factory=list)
    _known: dict[str, int] = field(default_factory=dict)

    def call(self, op: str, given: Mapping[str, Json], at: str) -> Json:
        """The value of a call, new or known. `given`: arguments by name."""
        known = signature(op)
        if known is None:
            return Problem(f"the graph format has no op for {op}: use others", at)
        for problem in _problems([*given.values()]):
            return problem
        args: list[Json] = []
        for param in known.params:
            if param.keyword_only or param.name not in given:
                break
            args.append(given[param.name])
        rest = {param.name for param in known.params[len(args) :]}
        kwargs = {name: value for name, value in given.items() if name in rest}
        key = json.dumps([op, args, kwargs])
        if key not in self._known:
            self._known[key] = len(self.calls)
            self.calls.append(Node(op, args, kwargs))
        return {"node": self._known[key]}

    def finish(self, outputs: Sequence[Json]) -> Written:
        """Keep what the outputs need, and name it after what it does."""
        for problem in _problems(outputs):
            where = f" ({problem.at})" if problem.at else ""
            raise PackRefused(f"{problem.why}{where}")
        needed: set[int] = set(_references(outputs, "node", int))
        for index in range(len(self.calls) - 1, -1, -1):
            if index in needed:
                needed.update(_references(self._arguments(index), "node", int))
        names: dict[int, str] = {}
        counts: dict[str, int] = {}
        nodes: list[dict[str, Json]] = []
        for index in sorted(needed):
            names[index] = _name(self.calls[index].op, counts)
            nodes.append(self._json(index, names))
        everything = [outputs, [self._arguments(index) for index in needed]]
        return Written(
            nodes,
            [_renamed(output, names) for output in outputs],
            frozenset(_references(everything, "weight", str)),
        )

    def _arguments(self, index: int) -> list[Json]:
        return [*self.calls[index].args, *self.calls[index].kwargs.values()]

    def _json(self, index: int, names: Mapping[int, str]) -> dict[str, Json]:
        call = self.calls[index]
        node: dict[str, Json] = {
            "name": names[index],
            "op": call.op,
            "args": [_renamed(value, names) for value in call.args],
        }
        if call.kwargs:
            node["kwargs"] = {
                name: _renamed(value, names) for name, value in call.kwargs.items()
            }
        return node


def _name(op: str, counts: dict[str, int]) -> str:
    """`linear`, `linear_1`, ...: the same for every export of one architecture."""
    base = op.split(".")[1] if "." in op else op
    counts[base] = counts.get(base, -1) + 1
    # No base ends in a number of its own after an underscore, so none can collide.
    return f"{base}_{counts[base]}" if counts[base] else base


def _renamed(value: Json, names: Mapping[int, str]) -> Json:
    if isinstance(value, list):
        return [_renamed(item, names) for item in value]
    if isinstance(value, dict) and isinstance(value.get("node"), int):
        return {"node": names[value["node"]]}
    return value


def _leaves(values: object) -> Iterator[Json]:
    if isinstance(values, list | tuple):
        for value in values:
            yield from _leaves(value)
    else:
        yield values


def _problems(values: object) -> Iterator[Problem]:
    return (leaf for leaf in _leaves(values) if isinstance(leaf, Problem))


def _references(values: object, role: str, kind: type[T]) -> Iterator[T]:
    for leaf in _leaves(values):
        if isinstance(leaf, dict) and isinstance(leaf.get(role), kind):
            yield leaf[role]
