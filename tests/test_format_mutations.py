"""Seeded mutations of good files: each reads, or is refused; nothing else happens."""

import copy
import json
import random
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from loader.digest import Chunks
from loader.errors import ArtifactRefused
from loader.graph import read_graph
from loader.header import read_header
from loader.manifest import (
    FileRef,
    ModelSpec,
    TensorSpec,
    read_manifest,
    write_manifest,
)
from loader.pack import export
from loader.pack_weights import safetensors_bytes

ROUNDS = 400
SEEDS = range(4)

ATOMS = [
    *(None, True, False, 0, 1, -1, 2**31, 2**63 - 1, 2**63, 10**30, 1.5, 1e308),
    *("", "x", "linear", "float32", "F32", "U8", "\ud800", "\u2028", "a" * 600),
    *([], {}, [[]], [0, 8], {"node": "linear"}, {"input": "x"}, {"float": "nan"}),
    *("aten.relu.default", "aten.zeros.default", "aten.lstm.input", "size", "getitem"),
]


def _paths(value: object, path: tuple = ()) -> Iterator[tuple]:
    yield path
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _paths(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _paths(item, (*path, index))


def _at(value, path: tuple):
    for key in path:
        value = value[key]
    return value


def _mutated(document: dict, draw: random.Random) -> bytes:
    document = copy.deepcopy(document)
    for _ in range(draw.choice([1, 1, 2, 3])):
        paths = [path for path in _paths(document) if path]
        if not paths:
            break
        *way, last = draw.choice(paths)
        parent, other = _at(document, tuple(way)), _at(document, draw.choice(paths))
        verb = draw.random()
        if verb < 0.2:
            del parent[last]
        elif verb < 0.4:
            parent[last] = copy.deepcopy(other)
        elif verb < 0.5 and isinstance(parent, list):
            parent.insert(last, copy.deepcopy(draw.choice(ATOMS)))
        elif verb < 0.6 and isinstance(parent, dict):
            parent["more"] = copy.deepcopy(draw.choice(ATOMS))
        else:
            parent[last] = copy.deepcopy(draw.choice(ATOMS))
    data = bytearray(json.dumps(document).encode())
    if draw.random() < 0.2:
        data[draw.randrange(len(data))] = draw.randrange(256)
    return bytes(data)


def _check(message: str) -> None:
    assert message.isprintable()
    assert len(message) < 700


@pytest.fixture(scope="module")
def graph() -> dict:
    net = nn.Sequential(nn.Conv1d(2, 3, 3), nn.GELU(), nn.Flatten(), nn.Linear(18, 4))
    return json.loads(export(net, {"x": torch.randn(2, 2, 8)}).graph_json)


@pytest.mark.parametrize("seed", SEEDS)
def test_graphs(seed: int, graph: dict) -> None:
    draw, refused = random.Random(seed), 0
    for _ in range(ROUNDS):
        try:
            read_graph(_mutated(graph, draw), torch.device("cpu"))
        except ArtifactRefused as error:
            _check(error.message)
            refused += 1
    assert ROUNDS * 0.6 < refused < ROUNDS


@pytest.mark.parametrize("seed", SEEDS)
def test_manifests(seed: int) -> None:
    file = FileRef("graph.json", 3, "0" * 64)
    chunks = Chunks(1 << 20, ("1" * 64,))
    other = FileRef("model.safetensors", 3, "0" * 64, chunks)
    inputs = (TensorSpec("x", "INT64", (-1, -1), 0, 9, (-1, 8)),)
    outputs = (TensorSpec("y", "FP32", (-1, 2)),)
    spec = ModelSpec(
        "m", "1", file, other, inputs, outputs, 4, {"a": "b"}, True, 1, "t"
    )
    good, draw, refused = json.loads(write_manifest(spec)), random.Random(seed), 0
    for _ in range(ROUNDS):
        try:
            read_manifest(_mutated(good, draw), "m", "1")
        except ArtifactRefused as error:
            _check(error.message)
            refused += 1
    assert ROUNDS * 0.6 < refused < ROUNDS


@pytest.mark.parametrize("seed", SEEDS)
def test_headers(seed: int) -> None:
    data = safetensors_bytes({"a": torch.zeros(2, 3), "b": torch.zeros(5).half()})
    layout = read_header(data, len(data))
    body = data[layout.data_start :]
    good = json.loads(data[8 : layout.data_start])
    draw, refused = random.Random(seed), 0
    for _ in range(ROUNDS):
        text = _mutated(good, draw)
        changed = len(text).to_bytes(8, "little") + text + body
        try:
            found = read_header(changed, len(changed))
        except ArtifactRefused as error:
            _check(error.message)
            refused += 1
            continue
        ends = [0, *(slot.end for slot in found.tensors)]
        assert [slot.start for slot in found.tensors] == ends[:-1]
        assert ends[-1] == len(body)
    assert ROUNDS * 0.6 < refused < ROUNDS
