"""model.json: what is right reads back the same, and nothing else reads at all."""

import copy
import json
from dataclasses import replace

import pytest

from loader.digest import LARGEST, SMALLEST, Chunks
from loader.errors import ArtifactRefused
from loader.manifest import (
    FileRef,
    ModelSpec,
    TensorSpec,
    read_manifest,
    write_manifest,
)

DIGEST = "ab" * 32

GOOD = {
    "format": 1,
    "graph": {"file": "graph.json", "size": 10, "sha256": DIGEST},
    "weights": {"file": "model.safetensors", "size": 20, "sha256": DIGEST},
    "inputs": [{"name": "x", "datatype": "INT64", "shape": [-1, -1]}],
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 3]}],
    "max_batch_size": 8,
}


NO_CHUNKS = {"size": SMALLEST, "blake3": []}


def _read(document: object) -> ModelSpec:
    return read_manifest(json.dumps(document).encode(), "m", "1")


def test_a_full_manifest_reads_back_the_same() -> None:
    spec = ModelSpec(
        name="m",
        version="7",
        graph=FileRef("graph.json", 1, DIGEST),
        weights=FileRef("model.safetensors", 1 << 40, "0" * 64),
        inputs=(
            TensorSpec("ids", "INT64", (-1, -1), 0, 98, (-1, 512)),
            TensorSpec("scale", "BF16", (-1,)),
        ),
        outputs=(TensorSpec("y:0", "FP32", (-1, 3)),),
        max_batch_size=8,
        labels={"team": "søk", "kind": "digits"},
        pin=True,
        priority=-3,
        tenant="a.b-c",
    )
    assert read_manifest(write_manifest(spec), "m", "7") == spec


def test_the_least_manifest_reads() -> None:
    spec = _read(GOOD)
    assert (spec.pin, spec.priority, spec.tenant, spec.labels) == (False, 0, "", {})
    assert spec.inputs[0].low is None
    assert read_manifest(write_manifest(spec), "m", "1") == spec


def test_whatever_is_served_or_decided_by_is_part_of_the_key() -> None:
    spec = _read(GOOD)
    first, *rest = spec.inputs
    others = [
        replace(spec, weights=replace(spec.weights, sha256="1" * 64)),
        replace(spec, weights=replace(spec.weights, size=spec.weights.size + 1)),
        replace(spec, graph=replace(spec.graph, sha256="1" * 64)),
        replace(spec, inputs=(replace(first, low=0, high=9), *rest)),
        replace(spec, inputs=(replace(first, max_shape=(9,)), *rest)),
        replace(spec, outputs=(replace(spec.outputs[0], name="other"),)),
        replace(spec, max_batch_size=spec.max_batch_size + 1),
        replace(spec, pin=True),
        replace(spec, priority=1),
        replace(spec, tenant="t"),
    ]
    assert len({one.key for one in (spec, *others)}) == 1 + len(others)
    assert replace(spec, labels={"a": "b"}, directory="d").key == spec.key


def test_chunks_read_back_the_same() -> None:
    file = FileRef("model.safetensors", SMALLEST + 1, DIGEST)
    chunked = replace(file, chunks=Chunks(SMALLEST, (DIGEST, "0" * 64)))
    spec = replace(_read(GOOD), weights=chunked)
    again = read_manifest(write_manifest(spec), "m", "1")
    assert again == spec
    assert again.weights.identity == chunked.identity


def test_what_is_verified_is_what_a_file_is_known_by() -> None:
    """The SHA-256 of a file with chunks is checked by nobody: whoever writes another
    model's there must not be taken for it."""
    file = FileRef("model.safetensors", SMALLEST, DIGEST)
    chunked = replace(file, chunks=Chunks(SMALLEST, (DIGEST,)))
    others = replace(file, chunks=Chunks(SMALLEST, ("0" * 64,)))
    larger = replace(file, chunks=Chunks(2 * SMALLEST, (DIGEST,)))
    files = (file, chunked, others, larger)
    assert len({each.identity for each in files}) == 4
    specs = [replace(_read(GOOD), weights=each) for each in files]
    assert len({spec.key for spec in specs}) == 4


def test_without_a_batch_any_shape_goes() -> None:
    document = copy.deepcopy(GOOD)
    document["max_batch_size"] = 0
    document["inputs"][0]["shape"] = []
    document["outputs"][0]["shape"] = [0, 2]
    assert _read(document).inputs[0].shape == ()


def _chunks(size: int, listed: object = (DIGEST,)):
    return _set("weights.chunks", {"size": size, "blake3": listed})


def _set(path: str, value: object):
    def change(document: dict) -> None:
        *way, last = [int(k) if k.isdigit() else k for k in path.split(".")]
        for key in way:
            document = document[key]
        document[last] = value

    return change


def _drop(key: str):
    return lambda document: document.pop(key)


WRONG = {
    "unknown key": (_set("extra", 1), "model.json: unknown key 'extra'"),
    "no outputs key": (_drop("outputs"), "model.json: key 'outputs' is missing"),
    "no graph": (_drop("graph"), "model.json: key 'graph' is missing"),
    "format of tomorrow": (_set("format", 2), "model.json: format:"),
    "format true": (_set("format", True), "model.json: format: must be an integer"),
    "graph a string": (_set("graph", "graph.json"), "model.json: graph: must be"),
    "graph with url": (_set("graph.url", "s3://x"), "model.json: graph: unknown key"),
    "file with slash": (_set("graph.file", "a/b"), "model.json: graph.file:"),
    "file up": (_set("graph.file", ".."), "model.json: graph.file:"),
    "file hidden": (_set("weights.file", ".w"), "model.json: weights.file:"),
    "file backslash": (_set("weights.file", "a\\b"), "model.json: weights.file:"),
    "file with NUL": (_set("weights.file", "a\0"), "model.json: weights.file:"),
    "file with newline": (_set("weights.file", "a\n"), "model.json: weights.file:"),
    "file encoded": (_set("weights.file", "%2e%2e"), "model.json: weights.file:"),
    "file empty": (_set("weights.file", ""), "model.json: weights.file:"),
    "file a number": (_set("weights.file", 3), "model.json: weights.file: must be"),
    "one file twice": (_set("weights.file", "graph.json"), "model.json: two files"),
    "file model.json": (_set("weights.file", "model.json"), "model.json: two files"),
    "size negative": (_set("graph.size", -1), "model.json: graph.size:"),
    "size 1 TiB + 1": (_set("weights.size", 2**40 + 1), "model.json: weights.size:"),
    "size a float": (_set("weights.size", 1.0), "model.json: weights.size:"),
    "size huge": (_set("weights.size", 10**400), "model.json: weights.size:"),
    "sha short": (_set("graph.sha256", "ab"), "model.json: graph.sha256:"),
    "sha upper case": (_set("graph.sha256", "AB" * 32), "model.json: graph.sha256:"),
    "sha null": (_set("graph.sha256", None), "model.json: graph.sha256:"),
    "graph in chunks": (_set("graph.chunks", {}), "model.json: graph: unknown key"),
    "chunks a list": (_set("weights.chunks", []), "model.json: weights.chunks: must"),
    "chunks without size": (
        _set("weights.chunks", {"blake3": [DIGEST]}),
        "model.json: weights.chunks: key 'size'",
    ),
    "chunks by another hash": (
        _set("weights.chunks", {"size": SMALLEST, "md5": [DIGEST]}),
        "model.json: weights.chunks: key 'blake3'",
    ),
    "chunks of 1000": (_chunks(1000), "model.json: weights.chunks.size: must be from"),
    "chunks too large": (_chunks(2 * LARGEST), "model.json: weights.chunks.size:"),
    "chunks of 3 MiB": (_chunks(3 << 20), "model.json: weights.chunks.size: must be a"),
    "no chunk": (_chunks(SMALLEST, []), "model.json: weights.chunks.blake3: must have"),
    "a chunk too many": (
        _chunks(SMALLEST, [DIGEST, DIGEST]),
        "model.json: weights.chunks.blake3: must have a digest for each chunk: 1, not",
    ),
    "chunk short": (
        _chunks(SMALLEST, ["ab"]),
        "model.json: weights.chunks.blake3: 'ab' is not 64",
    ),
    "chunk upper case": (
        _chunks(SMALLEST, ["AB" * 32]),
        "model.json: weights.chunks.blake3: ",
    ),
    "chunks of an empty file": (
        _set("weights", {**GOOD["weights"], "size": 0, "chunks": NO_CHUNKS}),
        "model.json: weights.chunks.blake3: must have",
    ),
    "inputs an object": (_set("inputs", {}), "model.json: inputs: must be a list"),
    "inputs many": (_set("inputs", GOOD["inputs"] * 257), "model.json: inputs: 257"),
    "input a string": (_set("inputs.0", "x"), "model.json: inputs[0]: must be"),
    "input name empty": (_set("inputs.0.name", ""), "model.json: inputs[0].name:"),
    "input name odd": (_set("inputs.0.name", "a\nb"), "model.json: inputs[0].name:"),
    "input name twice": (
        _set("inputs", GOOD["inputs"] * 2),
        "model.json: inputs[1].name: 'x' twice",
    ),
    "output name twice": (
        _set("outputs", GOOD["outputs"] * 2),
        "model.json: outputs[1].name: 'y' twice",
    ),
    "datatype BYTES": (
        _set("inputs.0.datatype", "BYTES"),
        "model.json: inputs[0].datatype:",
    ),
    "datatype a list": (
        _set("inputs.0.datatype", ["FP32"]),
        "model.json: inputs[0].datatype:",
    ),
    "shape -2": (_set("inputs.0.shape", [-1, -2]), "model.json: inputs[0].shape:"),
    "shape 2**63": (
        _set("inputs.0.shape", [-1, 2**63]),
        "model.json: inputs[0].shape:",
    ),
    "shape true": (_set("inputs.0.shape", [-1, True]), "model.json: inputs[0].shape:"),
    "shape of 17": (_set("inputs.0.shape", [-1] * 17), "model.json: inputs[0].shape:"),
    "batch not free": (
        _set("inputs.0.shape", [4, -1]),
        "model.json: inputs[0].shape: dimension 0",
    ),
    "no batch dim": (_set("outputs.0.shape", []), "model.json: outputs[0].shape:"),
    "no outputs": (_set("outputs", []), "model.json: outputs: must have"),
    "batch of nothing": (_set("inputs", []), "model.json: inputs: a batch"),
    "batch negative": (_set("max_batch_size", -1), "model.json: max_batch_size:"),
    "batch huge": (_set("max_batch_size", 2**31), "model.json: max_batch_size:"),
    "range of three": (
        _set("inputs.0.range", [0, 1, 2]),
        "model.json: inputs[0].range:",
    ),
    "range null": (_set("inputs.0.range", None), "model.json: inputs[0].range:"),
    "range upside down": (
        _set("inputs.0.range", [5, 4]),
        "model.json: inputs[0].range",
    ),
    "range of floats": (_set("inputs.0.range", [0.0, 1.0]), "model.json: inputs[0]"),
    "range of an output": (_set("outputs.0.range", [0, 1]), "model.json: outputs[0]:"),
    "limit of a fixed dim": (
        _set("inputs.0", {**GOOD["inputs"][0], "shape": [-1, 2], "max_shape": [-1, 3]}),
        "model.json: inputs[0].max_shape: bounds",
    ),
    "limits of another rank": (
        _set("inputs.0.max_shape", [-1]),
        "model.json: inputs[0].max_shape:",
    ),
    "labels a list": (_set("labels", ["a"]), "model.json: labels:"),
    "label a number": (_set("labels", {"a": 1}), "model.json: labels:"),
    "label with escape": (_set("labels", {"a": "\x1b[2J"}), "model.json: labels:"),
    "label surrogate": (_set("labels", {"a": "\ud800"}), "model.json: labels:"),
    "pin 1": (_set("pin", 1), "model.json: pin:"),
    "priority huge": (_set("priority", 2**31), "model.json: priority:"),
    "tenant up": (_set("tenant", "../b"), "model.json: tenant:"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_not_exactly_right_is_refused(case: str) -> None:
    change, place = WRONG[case]
    document = copy.deepcopy(GOOD)
    change(document)
    with pytest.raises(ArtifactRefused) as refused:
        _read(document)
    assert refused.value.message.startswith(place)
    assert refused.value.message.isprintable()
    assert len(refused.value.message) < 500


def test_a_range_needs_integers() -> None:
    document = copy.deepcopy(GOOD)
    document["inputs"][0] |= {"datatype": "FP32", "range": [0, 1]}
    with pytest.raises(ArtifactRefused, match=r"inputs\[0\]\.range"):
        _read(document)


TEXTS = {
    "nothing": b"",
    "a list": b"[]",
    "not UTF-8": b'{"a": "\xff"}',
    "UTF-16": json.dumps(GOOD).encode("utf-16"),
    "a byte order mark": b"\xef\xbb\xbf{}",
    "key twice": b'{"format": 1, "format": 1}',
    "key twice, deep": b'{"graph": {"file": "a", "file": "b"}}',
    "NaN": b'{"format": NaN}',
    "Infinity": b'{"format": -Infinity}',
    "a float beyond floats": b'{"format": 1e999}',
    "5,000 digits": b'{"format": ' + b"9" * 5000 + b"}",
    "trailing comma": b'{"format": 1,}',
    "a comment": b'{"format": 1} // one',
    "two documents": b"{}{}",
    "250,000 deep": b"[" * 250_000 + b"]" * 250_000,
    "250,000 opened": b'{"a":' * 250_000,
    "17 deep": b"[" * 17 + b"]" * 17,
    "brackets in strings, unclosed": b'{"a": "[[[[',
    "half a pair of quotes": b'"\\"\\"' * 50_000,
    "2 MiB": b" " * (2 << 20),
    "a pickle": b"\x80\x04\x95\x1a\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94.",
}


@pytest.mark.parametrize("case", TEXTS)
def test_what_is_not_plain_json_is_refused(case: str) -> None:
    with pytest.raises(ArtifactRefused, match=r"^model\.json"):
        read_manifest(TEXTS[case], "m", "1")


def test_brackets_inside_strings_do_not_count_as_depth() -> None:
    document = copy.deepcopy(GOOD) | {"labels": {"a": '"[[[[[[[[[[[[[[[[[[[[["\\'}}
    assert _read(document).labels["a"].endswith("\\")
