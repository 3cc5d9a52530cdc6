"""The process that compiles, for real: what it makes is right, and nobody else's text.

One graph is compiled once (half a minute of a core) and looked at from all sides.
"""

import asyncio
import hashlib
import json
import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from loader.code_cache import CodeCache
from loader.compile_job import Result, job_inputs, write_job
from loader.compiled import Compiled, Library
from loader.graph import read_graph
from loader.manifest import FileRef, ModelSpec, TensorSpec
from runtime import compile_process
from runtime.compile_process import compiled_apart, environment, job_folder
from runtime.compose import composed
from runtime.counts import Counts
from runtime.datatypes import TORCH
from runtime.engine import Request
from runtime.loading import Unservable
from runtime.sources import load

pytestmark = [pytest.mark.process, pytest.mark.timeout(300)]

CPU = torch.device("cpu")
ROWS, WIDTH = 11, 6
EVIL = '*/system("x");/*"\\'
"""What a name of an input may be: printable ASCII without spaces."""
NAMES = ("ids" + EVIL, "step" + EVIL, "y" + EVIL, "first")
NODE = "rm_rf_node_of_the_file"
WEIGHT = "table.rm_rf_weight"


def document() -> dict:
    """Rows of a table by ids and by ids + step: the second index is computed."""
    ids, step, y, first = NAMES
    both = [{"node": NODE + "1"}, {"node": NODE + "3"}]
    table, moved = {"weight": WEIGHT}, {"node": NODE + "2"}
    calls = [
        ("aten.embedding.default", table, {"input": ids}),
        ("aten.add.Tensor", {"input": ids}, {"input": step}),
        ("aten.embedding.default", table, moved),
        ("aten.einsum.default", "bsw,bsw->bs", both),
        ("aten.softmax.int", {"node": NODE + "4"}, -1),
        ("aten.gelu.default", {"node": NODE + "1"}),
    ]  # fmt: skip
    return {
        "format": 1,
        "weights": [{"name": WEIGHT, "dtype": "float32", "shape": [ROWS, WIDTH]}],
        "inputs": [ids, step],
        "nodes": [
            {"name": f"{NODE}{at}", "op": op, "args": args}
            for at, (op, *args) in enumerate(calls, 1)
        ],
        "outputs": [
            {"name": y, "value": {"node": NODE + "5"}},
            {"name": first, "value": {"node": NODE + "6"}},
        ],
    }


TEXT = json.dumps(document()).encode()
GRAPH = read_graph(TEXT, CPU)
TABLE = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(3))


def spec() -> ModelSpec:
    ids, step, y, first = NAMES
    return ModelSpec(
        name="m",
        version="1",
        graph=FileRef("graph.json", len(TEXT), GRAPH.digest),
        weights=FileRef("model.safetensors", 4 * ROWS * WIDTH, "0" * 64),
        inputs=(
            TensorSpec(ids, "INT64", (-1, -1), 0, ROWS - 2, (-1, 32)),
            TensorSpec(step, "INT64", (-1, 1), 0, 1),
        ),
        outputs=(TensorSpec(y, "FP32", (-1, -1)), TensorSpec(first, "FP32", (-1, -1))),
        max_batch_size=16,
    )


def write(folder: Path, text: bytes = TEXT) -> None:
    made = spec()
    inputs = job_inputs(made, [TORCH[tensor.datatype] for tensor in made.inputs])
    write_job(folder, text, inputs, [TABLE])


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> CodeCache:
    return CodeCache(tmp_path_factory.mktemp("code") / "cache")


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("job")


@pytest.fixture(scope="module")
def result(job, cache) -> Result:
    write(job)
    found = asyncio.run(compiled_apart(job, cache.folder))
    if "no C++ compiler" in found.reason:
        pytest.skip(found.reason)
    assert not found.reason, (found.reason, (job / "log").read_text()[-2000:])
    return found


@pytest.fixture(scope="module")
def compiled(result, cache) -> Compiled:
    entry = cache.find(result.key)
    assert entry is not None
    library = Library(entry.library, 1, entry.terms, 2)
    return Compiled(GRAPH.eager, library, 1, entry.terms)


def given(rows: int, length: int, step: int = 1) -> tuple[torch.Tensor, ...]:
    ids = torch.arange(rows * length).reshape(rows, length) % (ROWS - 1)
    return TABLE, ids, torch.full((rows, 1), step)


def test_it_is_right_for_every_size_that_its_terms_allow(compiled):
    with torch.inference_mode():
        for rows, length in [(1, 1), (1, 32), (16, 1), (2, 2), (5, 9), (16, 32)]:
            tensors = given(rows, length)
            for _ in range(2):
                torch.testing.assert_close(compiled(*tensors), GRAPH.eager(*tensors))
    assert compiled.calls == 12
    assert not compiled.declined


def test_sizes_beyond_its_terms_run_eagerly(compiled):
    with torch.inference_mode():
        for tensors in (given(17, 2), given(2, 33)):
            before = compiled.declined
            y, _ = compiled(*tensors)
            assert torch.equal(y, GRAPH.eager(*tensors)[0])
            assert compiled.declined == before + 1


@pytest.mark.parametrize("step", [ROWS, 1 << 40, -(1 << 40)])
def test_a_computed_index_out_of_range_is_the_requests_fault(compiled, step):
    with torch.inference_mode():
        with pytest.raises(IndexError, match="index out of range"):
            compiled(*given(4, 8, step))
        assert not compiled.failure
        calls = compiled.calls
        compiled(*given(4, 8))
    assert compiled.calls == calls + 1


def test_no_text_of_the_file_reaches_the_generated_source(result, job):
    sources = [
        path
        for pattern in ("*.cpp", "*.h", "*.py", "*.json", "*.txt")
        for path in (job / "made").rglob(pattern)
    ] + [*(job / "inductor").rglob("*.cpp")]
    assert any(path.name.endswith("wrapper.cpp") for path in sources)
    texts = [path.read_text(errors="replace") for path in sources]
    for strange in (EVIL, "system(", "rm_rf", "bsw", WEIGHT, *NAMES[:3]):
        assert not [text for text in texts if strange in text], strange


def test_what_is_in_the_cache_is_tried_and_not_compiled_again(result, cache):
    with job_folder() as folder:
        write(folder)
        again = asyncio.run(compiled_apart(folder, cache.folder))
        assert again.cached
        assert (again.key, again.reason) == (result.key, "")
        assert not (folder / "made").exists()


FILES = {"graph": "graph.json", "weights": "model.safetensors"}


def store_of(folder: Path) -> Path:
    """A store with the model of `spec`."""
    there = folder / "m" / "1"
    there.mkdir(parents=True)
    (there / "graph.json").write_bytes(TEXT)
    save_file({WEIGHT: TABLE}, there / "model.safetensors")
    made = spec()
    told = {
        "format": 1,
        **{
            role: {
                "file": name,
                "size": (there / name).stat().st_size,
                "sha256": hashlib.sha256((there / name).read_bytes()).hexdigest(),
            }
            for role, name in (
                ("graph", "graph.json"),
                ("weights", "model.safetensors"),
            )
        },
        "inputs": [_input(tensor) for tensor in made.inputs],
        "outputs": [
            {"name": t.name, "datatype": t.datatype, "shape": list(t.shape)}
            for t in made.outputs
        ],
        "max_batch_size": made.max_batch_size,
    }
    (there / "model.json").write_text(json.dumps(told))
    return folder


def _input(tensor: TensorSpec) -> dict:
    told = {
        "name": tensor.name,
        "datatype": tensor.datatype,
        "shape": list(tensor.shape),
        "range": [tensor.low, tensor.high],
    }
    return {**told, "max_shape": list(tensor.max_shape)} if tensor.max_shape else told


async def test_a_server_puts_it_in_place_behind_the_requests(result, cache, tmp_path):
    settings = {
        "store": str(store_of(tmp_path)),
        "device": "cpu",
        "compile": "auto",
        "compile_after": "0",
        "compile_cache": str(cache.folder),
    }
    _, ids, step = given(3, 4)
    asked = Request("m", dict(zip(NAMES, (ids, step), strict=False)))
    async with composed(load(settings, None, {}), Counts()) as engine:
        before = await engine.predict(asked)
        assert engine.compiler is not None
        await engine.compiler._task
        after = await engine.predict(asked)
        snapshot = await engine.snapshot()
        (told,) = snapshot.compiled
        assert (told.state, told.cached, told.calls) == ("compiled", True, 1), told
        assert snapshot.residents[0].code.startswith("compiled, ")
    for (name, wanted), (_, mine) in zip(before.outputs, after.outputs, strict=True):
        torch.testing.assert_close(mine, wanted, msg=name)


def test_a_folder_that_others_may_write_is_no_cache(tmp_path):
    (tmp_path / "code").mkdir(mode=0o777)
    (tmp_path / "code").chmod(0o777)
    settings = {
        "store": str(tmp_path),
        "device": "cpu",
        "compile": "auto",
        "compile_cache": str(tmp_path / "code"),
    }

    async def come_up() -> None:
        async with composed(load(settings, None, {}), Counts()):
            pass

    with pytest.raises(Unservable, match="chmod 700"):
        asyncio.run(come_up())


def test_code_that_answers_otherwise_is_refused(result, cache, tmp_path):
    """Another graph under this one's key: as if the compiler had been wrong."""
    other = document()
    other["nodes"][4]["op"] = "aten.log_softmax.int"
    worker = (
        "import sys, loader.compile_worker as w; k = sys.argv.pop();"
        "w.key_of = lambda *_: k; sys.exit(w.main(sys.argv[1:]))"
    )
    with job_folder() as folder:
        write(folder, json.dumps(other).encode())
        asyncio.run(_python(folder, worker, str(folder), str(cache.folder), result.key))
        found = compile_process.read_result(folder)
    assert found is not None
    assert "an output differs at sizes" in found.reason


async def _python(folder: Path, code: str, *arguments: str) -> int:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code, *arguments), env=environment(folder), cwd=folder
    )
    return await process.wait()


def test_a_worker_that_dies_is_a_reason_and_nothing_worse(tmp_path, cache, monkeypatch):
    def die(*_, **__):
        return real(
            *(sys.executable, "-c", "import os; os.kill(os.getpid(), 11)"), env={}
        )

    real = asyncio.create_subprocess_exec
    monkeypatch.setattr(asyncio, "create_subprocess_exec", die)
    found = asyncio.run(compiled_apart(tmp_path, cache.folder))
    assert "SIGSEGV" in found.reason


def test_a_worker_that_hangs_is_ended_with_all_it_started(tmp_path, cache, monkeypatch):
    def hang(*_, start_new_session, **__):
        code = "import os, time; os.fork(); time.sleep(1000)"
        return real(
            *(sys.executable, "-c", code),
            pass_fds=[theirs],
            start_new_session=start_new_session,
        )

    ours, theirs = os.pipe()
    real = asyncio.create_subprocess_exec
    monkeypatch.setattr(asyncio, "create_subprocess_exec", hang)
    monkeypatch.setattr(compile_process, "LONGEST_S", 1.0)
    found = asyncio.run(compiled_apart(tmp_path, cache.folder))
    assert "longer than 1 s" in found.reason
    os.close(theirs)
    with os.fdopen(ours, "rb") as pipe:
        assert pipe.read() == b""  # comes when the last of them has ended


def test_the_worker_has_no_credentials(tmp_path):
    told = environment(
        tmp_path,
        {"PATH": "/bin", "AWS_SECRET_ACCESS_KEY": "s", "HOTSET_STORE": "s3://x"},
    )
    assert told["PATH"] == "/bin"
    assert not [name for name in told if "AWS" in name or "HOTSET" in name]
    assert Path(told["TORCHINDUCTOR_CACHE_DIR"]).parent == tmp_path
