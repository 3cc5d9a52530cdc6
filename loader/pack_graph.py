"""The text of a `graph.json`, and what it tells about the inputs.

Owns: how a translated graph is written down, one node a line; which inputs index a
table. Must not: translate (loader/pack_normalise.py).
"""

import json
from collections.abc import Iterator, Mapping, Sequence

import torch

from loader.graph import FORMAT
from loader.pack_nodes import Json, Written

LOOK_UP = "aten.embedding.default"
"""The op that takes rows (its second argument) of a table (its first)."""

SAME_VALUES = frozenset(
    f"aten.{name}"
    for name in (
        *("to.dtype", "view.default", "reshape.default", "flatten.using_ints"),
        *("contiguous.default", "clone.default", "expand.default", "slice.Tensor"),
        *("unsqueeze.default", "squeeze.dim", "select.int", "transpose.int"),
        *("permute.default", "t.default"),
    )
)
"""Ops whose result holds no value that their first argument does not."""


def graph_bytes(
    written: Written,
    weights: Mapping[str, torch.Tensor],
    inputs: Sequence[str],
    outputs: Sequence[str],
) -> bytes:
    """The file. Equal graphs are equal bytes: the digest is what models share."""
    parts: dict[str, Sequence[object]] = {
        "weights": [
            {
                "name": name,
                "dtype": str(tensor.dtype).removeprefix("torch."),
                "shape": list(tensor.shape),
            }
            for name, tensor in weights.items()
        ],
        "inputs": list(inputs),
        "nodes": written.nodes,
        "outputs": [
            {"name": name, "value": value}
            for name, value in zip(outputs, written.outputs, strict=True)
        ],
    }
    lines = [f'{{"format": {FORMAT}']
    lines += [f'"{key}": [{_lines(items)}]' for key, items in parts.items()]
    return (",\n".join(lines) + "}\n").encode()


def _lines(items: Sequence[object]) -> str:
    return ",\n ".join(json.dumps(item) for item in items)


def index_ranges(
    written: Written, weights: Mapping[str, torch.Tensor]
) -> dict[str, tuple[int, int]]:
    """Inputs that are row numbers of a table -> the rows there are."""
    ranges: dict[str, tuple[int, int]] = {}
    for name, rows in _looked_up(written, weights):
        _, last = ranges.get(name, (0, rows - 1))
        ranges[name] = (0, min(last, rows - 1))
    return ranges


def _looked_up(
    written: Written, weights: Mapping[str, torch.Tensor]
) -> Iterator[tuple[str, int]]:
    """(input, rows of the table) for each look-up straight by an input."""
    origin: dict[str, str] = {}
    for node in written.nodes:
        args = node["args"]
        if not isinstance(args, list):
            continue
        first = _input(args[0], origin) if args else None
        if first is not None and node["op"] in SAME_VALUES:
            origin[str(node["name"])] = first
        if node["op"] == LOOK_UP:
            table, rows = args[:2]
            index = _input(rows, origin)
            if index is not None and isinstance(table, dict) and "weight" in table:
                yield index, weights[table["weight"]].shape[0]


def _input(value: Json, origin: Mapping[str, str]) -> str | None:
    """The input whose values these are, if any."""
    if not isinstance(value, dict):
        return None
    found = value.get("input", origin.get(str(value.get("node"))))
    return found if isinstance(found, str) else None
