"""The text of a `graph.json`.

Owns: how a translated graph is written down, one node a line. Must not: translate
(loader/pack_normalise.py).
"""

import json
from collections.abc import Mapping, Sequence

import torch

from loader.graph import FORMAT
from loader.pack_nodes import Written


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
