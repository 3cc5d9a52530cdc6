"""The arguments of a call in `graph.json`, each read as what its op wants there.

Owns: the forms a value may have in the file, and which form fits which parameter. Must
not: know the rest of the format (loader/graph.py) or which ops there are
(loader/ops.py).

    number, true, false, null      themselves, where the op takes such
    "same"                         a string, of the few that ops.STRINGS has
    [...]                          a list, where the op takes one
    {"node": n} {"input": n} {"weight": n}     a value computed or given before
    {"dtype": "float32"} {"memory_format": "channels_last"} {"float": "-inf"}
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import fx

from loader import dtypes
from loader.errors import ArtifactRefused
from loader.ops import FIXED, NUMBER_FOR_TENSOR, STRINGS, Kind, Param, Signature
from loader.strictjson import (
    INT64_MAX,
    INT64_MIN,
    array,
    boolean,
    integer,
    members,
    shown,
)

MAX_ITEMS = 4096
"""In one list."""

MAX_ALL = 200_000
"""In all lists of a graph: all become source, compiled at once under the GIL."""

MAX_ELEMENTS = 2**26
"""A literal size that asks for more is a mistake or an attack, not a small model."""

MAX_IN_LIST = 2**24
"""Windows, strides and paddings; beyond it some kernels overflow, or never end."""

_SIZES = frozenset({"size", "shape", "repeats", "output_size"})
_COUNTS = frozenset({"steps", "n", "m", "row", "col", "num_classes"})

Named = TypeVar("Named")


def _by_name(*values: Named) -> dict[str, Named]:
    return {str(value).removeprefix("torch."): value for value in values}


DTYPES = _by_name(*dtypes.DTYPES.values(), torch.complex64, torch.complex128)
MEMORY_FORMATS = _by_name(
    torch.contiguous_format,
    torch.preserve_format,
    torch.channels_last,
    torch.channels_last_3d,
)
_FLOATS = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}


@dataclass(frozen=True, slots=True)
class Value:
    """Something a later call may use. `gives`: of "tensors", how many, if known."""

    node: fx.Node
    kind: Kind
    gives: int | None = None


class Arguments:
    """Reads the arguments of calls; sees the values declared so far."""

    def __init__(self, values: Mapping[str, Mapping[str, Value]]) -> None:
        self._values = values
        self._items = 0
        self._forms: Mapping[str, Callable[[Param, object, str], fx.node.Argument]] = {
            "Tensor": self._tensor,
            "values": self._several,
            "int": self._int,
            "float": self._float,
            "number": self._number,
            "bool": lambda _, value, at: boolean(value, at),
            "str": _string,
            "ScalarType": lambda _, value, at: _named(value, "dtype", DTYPES, at),
            "MemoryFormat": lambda _, value, at: _named(
                value, "memory_format", MEMORY_FORMATS, at
            ),
        }

    def read(
        self, op: str, known: Signature, args: object, kwargs: object, place: str
    ) -> tuple[tuple[fx.node.Argument, ...], dict[str, fx.node.Argument]]:
        """Positional and keyword arguments of one call."""
        values = array(args, f"{place}: args", len(known.params))
        given = _bind(known, values, kwargs, place)
        read: dict[str, fx.node.Argument] = {}
        for param, value in given:
            at = f"{place}: argument '{param.name}'"
            if (op, param.name) in FIXED and value != FIXED[op, param.name]:
                raise ArtifactRefused(at, f"must be {FIXED[op, param.name]}")
            read[param.name] = self._argument(param, value, at)
        _check_sizes(op, read, place)
        if op == "getitem":
            self._check_index(values, place)
        named = dict(list(read.items())[len(values) :])
        return tuple(read.values())[: len(values)], named

    def tensor(self, value: object, at: str) -> fx.Node:
        """A reference to a tensor."""
        found = self._reference(value, at)
        if found is None or found.kind != "tensor":
            raise ArtifactRefused(at, "must be a tensor")
        return found.node

    def _argument(self, param: Param, value: object, at: str) -> fx.node.Argument:
        if value is None and param.optional:
            return None
        form = self._forms.get(param.type)
        if form is None:
            raise ArtifactRefused(at, "can never be given")
        if not param.many:
            return form(param, value, at)
        items = array(value, at, MAX_ITEMS)
        self._items += len(items)
        if self._items > MAX_ALL:
            raise ArtifactRefused(at, f"more than {MAX_ALL} items in the graph's lists")
        return [
            None if item is None and param.gaps else form(param, item, at)
            for item in items
        ]

    def _reference(self, value: object, at: str) -> Value | None:
        """The value that `value` refers to; None if it is not of that form."""
        if not isinstance(value, dict) or len(value) != 1:
            return None
        ((role, name),) = value.items()
        if role not in self._values:
            return None
        found = self._values[role].get(name) if isinstance(name, str) else None
        if found is None:
            raise ArtifactRefused(at, f"no {role} {shown(name)} stands before this")
        return found

    def _tensor(self, param: Param, value: object, at: str) -> fx.node.Argument:
        if param.name in NUMBER_FOR_TENSOR:
            found = self._reference(value, at)
            if found is None or found.kind != "tensor":
                return self._number(param, value, at)
        return self.tensor(value, at)

    def _several(self, _: Param, value: object, at: str) -> fx.node.Argument:
        found = self._reference(value, at)
        if found is None or found.kind != "tensors":
            raise ArtifactRefused(at, "must be a node with several results")
        return found.node

    def _int(self, _: Param, value: object, at: str) -> fx.node.Argument:
        found = self._reference(value, at)
        if found is None:
            return integer(value, at, INT64_MIN, INT64_MAX)
        if found.kind != "int":
            raise ArtifactRefused(at, "must be an integer")
        return found.node

    def _float(self, param: Param, value: object, at: str) -> fx.node.Argument:
        if isinstance(value, bool):
            raise ArtifactRefused(at, "must be a number")
        return self._number(param, value, at)

    def _number(self, _: Param, value: object, at: str) -> fx.node.Argument:
        if isinstance(value, bool | float):
            return value
        if isinstance(value, int):
            return integer(value, at, INT64_MIN, INT64_MAX)
        if isinstance(value, dict) and "float" in value:
            return _named(value, "float", _FLOATS, at)
        found = self._reference(value, at)
        if found is None or found.kind not in ("int", "float"):
            raise ArtifactRefused(at, "must be a number")
        return found.node

    def _check_index(self, values: Sequence[object], place: str) -> None:
        """A literal index into results, below their number where that is known."""
        at = f"{place}: argument 'index'"
        found = self._reference(values[0], at) if len(values) == 2 else None
        if found is None:
            raise ArtifactRefused(place, "takes two positional arguments")
        most = MAX_ITEMS if found.gives is None else found.gives
        integer(values[1], at, 0, most - 1)


def _bind(
    known: Signature, args: Sequence[object], kwargs: object, place: str
) -> list[tuple[Param, object]]:
    """Each argument with its parameter, as Python would bind a call."""
    params = [param for param in known.params if not param.keyword_only]
    if len(args) > len(params):
        raise ArtifactRefused(
            place, f"takes {len(params)} positional arguments at most"
        )
    given = list(zip(params, args, strict=False))
    rest = {param.name: param for param in known.params[len(args) :]}
    named = members(kwargs, f"{place}: kwargs", (), rest.keys())
    given += [(rest[name], value) for name, value in named.items()]
    bound = {param.name for param, _ in given}
    for param in known.params:
        if param.required and param.name not in bound:
            raise ArtifactRefused(place, f"argument '{param.name}' is missing")
    return given


def _string(param: Param, value: object, at: str) -> str:
    pattern = STRINGS.get(param.name)
    if pattern is None or not isinstance(value, str) or not pattern.fullmatch(value):
        raise ArtifactRefused(at, f"{shown(value)} is not a string it takes")
    return value


def _named(value: object, key: str, names: Mapping[str, Named], at: str) -> Named:
    """A constant by name: `{"dtype": "float32"}`."""
    found = members(value, at, (key,))[key]
    if not isinstance(found, str) or found not in names:
        raise ArtifactRefused(at, f"{shown(found)} is no {key}")
    return names[found]


def _check_sizes(op: str, read: Mapping[str, fx.node.Argument], place: str) -> None:
    """Refuse literals that ask for absurd tensors before anything runs."""
    asked = [1.0]
    for name, value in read.items():
        if name in _SIZES and isinstance(value, list):
            dims = [dim for dim in value if isinstance(dim, int)]
            asked.append(math.prod(max(dim, 1) for dim in dims))
        elif isinstance(value, list):
            _check_list(value, f"{place}: argument '{name}'")
        if name in _COUNTS and isinstance(value, int):
            asked.append(value)
    if op == "aten.eye.m":
        asked.append(math.prod(v for v in read.values() if isinstance(v, int)))
    if op.startswith("aten.arange."):
        asked.append(_steps(read))
    if max(asked) > MAX_ELEMENTS:
        raise ArtifactRefused(place, f"asks for more than {MAX_ELEMENTS} elements")


def _check_list(values: Sequence[object], at: str) -> None:
    if any(isinstance(item, int) and abs(item) > MAX_IN_LIST for item in values):
        raise ArtifactRefused(at, f"holds a number beyond {MAX_IN_LIST}")


def _steps(read: Mapping[str, fx.node.Argument]) -> float:
    """How many numbers a range of literals has; a computed end counts as none."""
    start, end, step = (read.get(name) for name in ("start", "end", "step"))
    first = start if isinstance(start, int | float) else 0
    last = end if isinstance(end, int | float) else first
    wide = step if isinstance(step, int | float) and step else 1
    return abs((last - first) / wide)
