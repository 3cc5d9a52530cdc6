import asyncio
import atexit
import json
import os
import pty
import re
import select
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from loader.tier import Tier, Tiers
from runtime import cli
from runtime.commands import Failed
from runtime.commands.arrays import DTYPES, from_bytes, to_bytes
from runtime.commands.ls import Row, _of_resident, joined, table
from runtime.commands.picture import Sort, frame, rates
from runtime.commands.units import age, share, size
from runtime.config import Settings
from runtime.counts import Counts
from runtime.engine import Kept, Resident, Snapshot
from runtime.metrics import Metrics
from runtime.report import About, Report
from runtime.rest import application, listening
from runtime.rest_pages import ServerInfo
from runtime.server import start
from tests import tiny_models
from tests.fake_engine import FakeEngine

ROOT = Path(__file__).parent.parent
EVIL = "evil\x1b[31m[bold]\n"


class EngineWithResidents(FakeEngine):
    """The fake, with two models in memory."""

    async def snapshot(self):
        return replace(
            await super().snapshot(),
            capacity=4 << 20,
            held=3 << 20,
            peak_held=3 << 20,
            measured=5 << 20,
            uptime_s=93.0,
            requests={"hit": 6, "wait": 1, "miss": 1},
            residents=(
                Resident(
                    "linear",
                    "1",
                    "READY",
                    2 << 20,
                    "cpu",
                    0,
                    8,
                    4.2,
                    False,
                    below={"host": 3 << 19},
                ),
                Resident("simple", "1", "LOADING", 1 << 20, "cpu", 1, 0, 0.0, True),
            ),
            tiers=Tiers(below=(Tier("host", 9 << 20, 9 << 19, 2, 0, 0, 0, 0),)),
            kept=(Kept("fallen", "1", {"host": 3 << 20}),),
        )


@contextmanager
def serving(engine_type):
    """gRPC and HTTP over a fake engine, on a loop of their own as in a real server.

    Gives (gRPC address, HTTP address)."""
    told: Future[tuple[str, str]] = Future()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def serve() -> None:
        engine = engine_type()
        app = application(engine, Metrics(Counts(), "1"), ServerInfo("fake", "1.2.3"))
        async with (
            listening(app, "127.0.0.1", 0) as port,
            await start(engine, address="127.0.0.1:0") as server,
        ):
            told.set_result((server.address, f"http://127.0.0.1:{port}"))
            await stop.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    try:
        yield told.result(10)
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


@pytest.fixture(scope="module")
def server():
    with serving(EngineWithResidents) as addresses:
        yield addresses


@pytest.fixture
def run(monkeypatch):
    """Runs the command line in this process; gives exit code, stdout, stderr."""
    monkeypatch.setattr(os, "environ", dict(os.environ))

    def invoke(*arguments: object, stdin: str = "") -> tuple[int, str, str]:
        app = cli.build()
        result = CliRunner().invoke(app, [str(a) for a in arguments], input=stdin)
        if not isinstance(result.exception, SystemExit | None):
            raise result.exception
        return result.exit_code, result.stdout, result.stderr

    return invoke


# -- the whole ------------------------------------------------------------------------


def test_a_command_ends_cleanly_while_the_stores_threads_still_work(tmp_path):
    """One core, and an answer the moment it is asked: half of these runs aborted when
    the interpreter was taken apart under obstore's threads."""
    cores = sorted(os.sched_getaffinity(0))[:1]
    for _ in range(5):
        done = subprocess.run(
            [sys.executable, "-m", "runtime", "ls", "--store", str(tmp_path)],
            capture_output=True, text=True, cwd=ROOT,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )  # fmt: skip
        assert (done.returncode, "0 in all" in done.stdout) == (0, True), done.stderr


def test_the_process_ends_without_taking_the_interpreter_apart(monkeypatch):
    """What the test above may miss by luck."""
    ended = []
    monkeypatch.setattr(os, "_exit", ended.append)
    monkeypatch.setattr(atexit, "_run_exitfuncs", lambda: ended.append("atexit"))
    monkeypatch.setattr(sys, "argv", ["hotset", "ls", "--store", "ftp://x"])
    with pytest.raises(SystemExit):  # os._exit came back, as it never does
        cli.main()
    assert ended == ["atexit", 1]


def test_help_lists_every_command_and_imports_nothing_heavy():
    script = (
        "import sys; from runtime.cli import build\n"
        "try: build()(['--help'], prog_name='hotset')\n"
        "except SystemExit as end: code = end.code\n"
        "heavy = {'torch', 'grpc', 'numpy', 'pydantic', 'rich', 'structlog'}\n"
        "print(code, sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT
    )
    assert done.stdout.splitlines()[-1] == "0 []", done.stderr
    for name, command in cli.COMMANDS.items():
        assert re.search(
            rf"^  {name} +{re.escape(command.summary)}$", done.stdout, re.M
        )


def test_it_runs_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "runtime", "serve", "--store", "/nowhere/at/all"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 2
    assert "there is no such folder" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help(run, name):
    code, out, _ = run(name, "--help")
    assert code == 0
    assert f"Usage: hotset {name}" in out.replace("root", "hotset")
    assert len(out.splitlines()) > 10


@pytest.mark.parametrize("name", sorted(cli.COMMANDS.keys() - {"demo"}))
def test_help_teaches_by_examples(run, name):
    assert f"      hotset {name} " in run(name, "--help")[1] + " "


def test_a_misspelt_command_is_guessed(run):
    code, _, err = run("serv")
    assert code == 2
    assert "Did you mean 'serve'" in err


def test_version(run):
    code, out, _ = run("--version")
    assert code == 0
    assert out.startswith("hotset")


def test_a_result_is_an_exit_code_and_a_failure_is_a_sentence(capsys):
    import typer

    def fails():
        raise Failed(f"one\ntwo {EVIL}")

    for function, code in ((lambda: 3, 3), (lambda: None, 0), (fails, 1)):
        with pytest.raises(typer.Exit) as end:
            cli.ending("x", function)()
        assert end.value.exit_code == code
    # The line break in the name is one of the message, too; nothing else gets through.
    assert (
        capsys.readouterr().err == "hotset x: one\nhotset x: two evil\\x1b[31m[bold]\n"
    )


# -- serve ----------------------------------------------------------------------------


def test_every_setting_is_an_option_of_serve(run):
    _, out, _ = run("serve", "--help")
    for name in Settings.model_fields:
        assert f"--{name.replace('_', '-')}" in out
    assert "--no-batching" in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "--store ./folder"),
        (("--store", "x", "--grace", "soon"), "--grace: "),
        (("--store", "ftp://x"), "'ftp://' is not a kind of store"),
        (("--store", "x", "--bugdet", "1"), "--bugdet"),
        (("--store", "x", "--config", "/nowhere.toml"), "No such file"),
    ],
)
def test_serve_refuses_what_it_cannot_mean(run, arguments, says):
    code, out, err = run("serve", *arguments)
    assert (code, out) == (2, "")
    assert says in err


@pytest.mark.process
def test_serve_says_in_a_sentence_why_it_cannot_start(tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        done = subprocess.run(
            [
                sys.executable, "-m", "runtime", "serve", "--store", str(tmp_path),
                "--device", "cpu", "--http-port", str(port), "--grpc-port", "0",
                "--log-format", "json",
            ],
            capture_output=True, text=True, cwd=ROOT,
        )  # fmt: skip
    assert done.returncode == 1
    *records, sentence = done.stderr.splitlines()
    assert f"cannot listen on 127.0.0.1:{port}" in sentence
    assert sentence.startswith("hotset serve: ")
    assert [json.loads(line)["level"] for line in records]


# -- infer ----------------------------------------------------------------------------


def test_infer_shows_the_answer(run, server):
    code, out, err = run(
        "infer", "identity_int32", "--url", server[0], "--input", "x=[3, 1, 2]"
    )
    assert (code, err) == (0, "")
    assert "identity_int32 version 1, " in out
    assert "y INT32[3]\n  [3 1 2]" in out


def test_infer_takes_json_and_gives_json(run, server):
    row = [list(range(16))]
    body = json.dumps({"INPUT0": row, "INPUT1": row})
    code, out, _ = run(
        "infer", "simple", "--url", server[0], "--json", "-", "--format", "json",
        "--output", "OUTPUT0", stdin=body,
    )  # fmt: skip
    assert code == 0
    answer = json.loads(out)
    assert [o["name"] for o in answer["outputs"]] == ["OUTPUT0"]
    assert answer["outputs"][0]["data"] == list(range(0, 32, 2))
    assert answer["outputs"][0]["shape"] == [1, 16]


def test_infer_takes_the_body_of_a_rest_request(run, server, tmp_path):
    data = [{"name": "x", "shape": [2, 64], "datatype": "FP32", "data": [0] * 128}]
    body = tmp_path / "body.json"
    body.write_text(json.dumps({"inputs": data}))
    code, out, _ = run("infer", "linear", "--url", server[0], "--json", f"@{body}")
    assert code == 0
    assert "y FP32[2, 10]" in out


def test_infer_reads_and_writes_numpy_files(run, server, tmp_path):
    x = np.random.default_rng(0).normal(size=(3, 64))
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "x.npz", other=x[:1], x=x)
    saved = []
    for source in ("x.npy", "x.npz"):
        out = tmp_path / f"{source}.out.npz"
        code, _, err = run(
            "infer", "linear", "--url", server[0], "--save", out,
            "-i", f"x=@{tmp_path / source}",
        )  # fmt: skip
        assert (code, err) == (0, "")
        saved.append(np.load(out)["y"])
    assert saved[0].shape == (3, 10)
    assert np.array_equal(*saved)
    assert saved[0].sum(1) == pytest.approx(1)


@pytest.mark.parametrize("datatype", sorted(DTYPES))
def test_infer_speaks_every_datatype(run, server, datatype):
    value = [True, False] if datatype == "BOOL" else [0, 1, 100]
    code, out, err = run(
        "infer", f"identity_{datatype.lower()}", "--url", server[0],
        "--input", f"x={json.dumps(value)}", "--format", "json",
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert json.loads(out)["outputs"][0]["data"] == value


def test_numbers_that_json_does_not_have_are_words(run, server):
    code, out, _ = run(
        "infer", "identity_fp32", "--url", server[0], "--format", "json",
        "--input", "x=[NaN, Infinity, -Infinity]",
    )  # fmt: skip
    assert code == 0
    data = json.loads(out, parse_constant=pytest.fail)["outputs"][0]["data"]
    assert data == ["NaN", "Infinity", "-Infinity"]


@pytest.mark.parametrize(
    ("model", "arguments", "says"),
    [
        ("nope", ["-i", "x=[1]"], "NOT_FOUND: Request for unknown model: 'nope'"),
        ("linear", ["-i", "z=[1]"], "no input 'z'; it takes x FP32[-1, 64]"),
        ("simple", ["-i", "INPUT0=[[1]]"], "input 'INPUT1' is missing"),
        ("linear", ["-i", "x=[[1, 2]]"], "has shape [1, 2], the model takes [-1, 64]"),
        ("linear", ["-i", f"x={[0] * 64}"], "another pair of brackets"),
        ("linear", ["-i", "x=[[1], [1, 2]]"], "rows differ in length"),
        ("linear", ["-i", "x=hello"], "not JSON"),
        ("linear", ["-i", 'x=["a"]'], "numbers or booleans"),
        ("linear", ["-i", "x=@/nowhere.npy"], "/nowhere.npy: No such file"),
        ("linear", ["--json", "@/nowhere.json"], "/nowhere.json: No such file"),
        ("linear", ["--json", "[1]"], "must be an object"),
        ("identity_int8", ["-i", "x=[300]"], "values that INT8 does not have"),
        ("identity_int8", ["-i", "x=[1.5]"], "values that INT8 does not have"),
        ("identity_uint64", ["-i", "x=[-1]"], "values that UINT64 does not have"),
        ("identity_bool", ["-i", "x=[2]"], "values that BOOL does not have"),
        ("identity_fp16", ["-i", "x=[1e9]"], "values that FP16 does not have"),
        ("identity_int8", ["-i", "x=[1]", "-o", "z"], "no output 'z'; it has y"),
        ("embedding", ["-i", "ids=[[100]]"], "INVALID_ARGUMENT: "),
    ],
)
def test_infer_fails_with_a_sentence(run, server, model, arguments, says):
    code, out, err = run("infer", model, "--url", server[0], *arguments)
    assert (code, out) == (1, "")
    assert err.startswith("hotset infer: ")
    assert says in err
    assert len(err.splitlines()) == 1


def test_infer_wants_inputs_as_they_are_written(run, server):
    assert run("infer", "linear")[0] == 2
    code, _, err = run("infer", "linear", "-i", "[1]")
    assert code == 2
    assert "NAME=VALUE" in err


def test_infer_unpickles_nothing(run, server, tmp_path):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("unpickled",))

    np.save(tmp_path / "x.npy", np.array([Bomb()], dtype=object), allow_pickle=True)
    code, _, err = run(
        "infer", "linear", "--url", server[0], "-i", f"x=@{tmp_path / 'x.npy'}"
    )
    assert code == 1
    assert "allow_pickle=False" in err


def test_bfloat16_is_rounded_as_torch_rounds_it():
    rng = np.random.default_rng(1)
    bits = rng.integers(0, 2**32, 200_000, dtype=np.uint32)
    ties = (bits & 0xFFFF0000) | 0x8000
    values = np.concatenate([bits, ties]).view(np.float32)
    mine = np.frombuffer(to_bytes(values, "BF16"), np.uint16)
    theirs = torch.from_numpy(values).to(torch.bfloat16).view(torch.uint16).numpy()
    numbers = ~np.isnan(values)
    assert np.array_equal(mine[numbers], theirs[numbers])
    back = from_bytes(mine.tobytes(), "BF16", [len(values)])
    assert np.isnan(back[~numbers]).all()
    again = torch.from_numpy(mine.copy()).view(torch.bfloat16).to(torch.float32).numpy()
    assert np.array_equal(back, again, equal_nan=True)


# -- pack and ls ----------------------------------------------------------------------


@pytest.fixture
def models(tmp_path, monkeypatch):
    """A folder with a module that has factories, and nothing else on the path after."""
    (tmp_path / "cli_models.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def hello():\n"
        "    return nn.Linear(2, 3), {'x': torch.zeros(1, 2)}\n"
        "def bare():\n"
        "    return nn.Linear(2, 3)\n"
        "def table():\n"
        "    return nn.Embedding(5, 2), {'ids': torch.zeros(1, 4, dtype=torch.int64)}\n"
        "class Moody(nn.Linear):\n"
        "    def forward(self, x):\n"
        "        return super().forward(x) if x.sum() > 0 else -x\n"
        "def moody():\n"
        "    return Moody(2, 2), {'x': torch.zeros(1, 2)}\n"
        "def calm():\n"
        "    return nn.Linear(2, 3).eval(), {'x': torch.zeros(1, 2)}\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    yield tmp_path
    sys.modules.pop("cli_models", None)


def test_pack_tells_what_it_packed_and_ls_finds_it(run, models):
    code, out, err = run(
        "pack", "cli_models:hello", "--out", "store", "--label", "team=a", "--pin"
    )
    assert (code, err) == (0, "")
    assert re.search(r"packed +hello version 1", out)
    assert re.search(r"inputs +x FP32\[-1, 2\]", out)
    assert re.search(r"graph +1 nodes, 1 kinds of op", out)
    assert re.search(r"max difference +\S+ from the original", out)
    assert re.search(r"mode +eval: it came in training mode", out)
    spec = json.loads((models / "store/hello/1/model.json").read_text())
    assert spec["labels"] == {"team": "a"}
    assert spec["pin"] is True
    code, out, _ = run("ls", "--store", "store")
    assert re.search(r"hello +1 +\d+ B +pinned", out)
    again = run("pack", "cli_models:hello", "--out", "store")
    assert again[0] == 1
    assert "never overwritten" in again[2]


def test_pack_takes_examples_ranges_and_limits_from_the_command_line(run, models):
    code, _, err = run(
        "pack", "cli_models:bare", "--out", "store", "--name", "b", "--version", "7",
        "--example", '{"input": [[0.5, 1]]}', "--output", "logits",
    )  # fmt: skip
    assert (code, err) == (0, "")
    spec = json.loads((models / "store/b/7/model.json").read_text())
    assert spec["inputs"][0]["datatype"] == "FP32"
    assert spec["outputs"][0]["name"] == "logits"
    code, _, err = run(
        "pack", "cli_models:table", "--out", "store", "--range", "ids=1:3",
        "--dynamic", "ids=1", "--limit", "ids=-1,9",
    )  # fmt: skip
    assert (code, err) == (0, "")
    spec = json.loads((models / "store/table/1/model.json").read_text())
    assert spec["inputs"][0]["shape"] == [-1, -1]
    assert spec["inputs"][0]["range"] == [1, 3]


def test_pack_takes_a_pt2_of_ones_own(run, models):
    program = torch.export.export(
        torch.nn.Linear(2, 3),
        (torch.zeros(2, 2),),
        dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
    )
    torch.export.save(program, models / "mine.pt2")
    code, out, err = run("pack", "mine.pt2", "--out", "store")
    assert (code, err) == (0, "")
    assert re.search(r"packed +mine version 1", out)
    code, _, err = run("pack", "mine.pt2", "--out", "other", "--example", "{}")
    assert code == 2


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["cli_models:bare"], 1, "gives no example inputs"),
        (["cli_models:nothing"], 1, "cannot be imported"),
        (["cli_models:moody"], 1, "by the values of a tensor (cli_models.py, line 11)"),
        (["nowhere.pt2"], 1, "there is no such file"),
        (["cli_models:hello", "--name", "../x"], 2, "--name: a model's name has"),
        (["cli_models:hello", "--version", "v1"], 2, "--version is"),
        (["cli_models:table", "--range", "ids=low"], 2, "--range ids=low"),
        (["cli_models:table", "--label", "x"], 2, "--label x"),
    ],
)
def test_pack_says_what_is_missing(run, models, arguments, code, says):
    got, _, err = run("pack", *arguments, "--out", "store")
    assert got == code
    assert says in err
    assert not (models / "store").exists()


def test_pack_shows_nobody_torchs_graph_and_says_eval_only_if_it_switched(run, models):
    _, out, err = run("pack", "cli_models:moody", "--out", "store")
    assert out == ""
    assert len(err.splitlines()) == 1
    code, out, _ = run("pack", "cli_models:calm", "--out", "store")
    assert (code, "training" in out) == (0, False)


def test_pack_takes_a_hugging_face_directory(run, models):
    transformers = pytest.importorskip("transformers", reason="the extra [hf]")
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BertConfig(vocab_size=90, intermediate_size=32, **small)
    transformers.BertModel(config).save_pretrained("minibert")
    code, _, err = run("pack", "minibert", "--out", "store")
    assert code == 2
    assert "needs --task, one of feature-extraction" in err
    code, _, err = run("pack", "minibert", "--out", "store", "--task", "poetry")
    assert code == 2
    task = ("--task", "feature-extraction")
    code, _, err = run("pack", "minibert", "--out", "store", *task, "--range", "a=0:1")
    assert code == 2
    assert "with --task the inputs" in err
    code, out, err = run("pack", "minibert", "--out", "store", *task)
    assert (code, err) == (0, "")
    assert re.search(r"packed +minibert version 1", out)
    spec = json.loads((models / "store/minibert/1/model.json").read_text())
    assert spec["inputs"][0]["range"] == [0, 89]


def test_ls_of_a_store_tells_sizes_versions_and_what_is_broken(run, tmp_path):
    tiny_models.linear(tmp_path, "b")
    tiny_models.linear(tmp_path, "a")
    broken = tmp_path / "c" / "2"
    broken.mkdir(parents=True)
    (broken / "model.json").write_text("{")
    code, out, _ = run("ls", "--store", tmp_path, "--format", "json")
    assert code == 0
    rows = [json.loads(line) for line in out.splitlines()]
    assert [(r["name"], r["version"]) for r in rows] == [
        ("a", "1"),
        ("b", "1"),
        ("c", "2"),
    ]
    assert rows[0]["nbytes"] > 0
    assert rows[2]["nbytes"] is None
    assert "model.json" in rows[2]["note"]
    code, out, err = run("ls", "--store", tmp_path, "--limit", "2")
    assert "more than 2 models" in err
    _, out, err = run("ls", "--store", tmp_path, "--prefix", "b")
    assert "1 in all" in out
    assert err == ""


def test_ls_of_a_server_and_of_both(run, server, tmp_path):
    code, out, _ = run("ls", "--url", server[1])
    assert code == 0
    assert re.search(r"model +version +state +cpu +host", out), "no column for a file"
    assert re.search(r"linear +1 +READY +2\.0 MiB +1\.5 MiB", out)
    assert re.search(r"simple +1 +LOADING +1\.0 MiB +- +pinned", out)
    assert re.search(r"fallen +1 +- +- +3\.0 MiB", out)
    assert "3 in all: cpu 3.0 MiB, host 4.5 MiB" in out
    tiny_models.linear(tmp_path, "linear")
    tiny_models.linear(tmp_path, "cold")
    code, out, _ = run("ls", "--store", tmp_path, "--url", server[1])
    assert re.search(r"model +version +file +state +cpu +host", out)
    assert re.search(r"linear +1 +\d+ B +READY +2\.0 MiB +1\.5 MiB", out)
    assert re.search(r"cold +1 +\d+ B +- +- +-", out)


def test_ls_fails_with_a_sentence(run, tmp_path):
    code, _, err = run("ls", "--store", tmp_path / "nowhere")
    assert code == 1
    assert "there is no such folder" in err


# -- top ------------------------------------------------------------------------------


def drawn(picture, width: int = 100) -> str:
    console = Console(width=width, force_terminal=False, color_system=None)
    with console.capture() as captured:
        console.print(picture)
    return captured.get()


async def _snapshot() -> Snapshot:
    return await EngineWithResidents().snapshot()


def report(**changed) -> Report:
    return Report(
        About("fake", "1", True), replace(asyncio.run(_snapshot()), **changed)
    )


def test_top_once_shows_everything(run, server):
    code, out, err = run("top", "--url", server[1], "--once")
    assert (code, err) == (0, "")
    assert "fake 1.2.3" in out
    assert "ready" in out
    assert "3.0 MiB of 4.0 MiB (75.0 %)" in out
    assert "#" * 30 + "." * 10 in out
    assert re.search(r"in all +8 +75\.0 % +0 +0 +0", out)
    assert re.search(r"linear +1 +READY +2\.0 MiB +cpu +1\.5 MiB +8 +0 +4\.2s", out)
    assert re.search(r"simple .* unused +pinned", out)


def test_rates_are_made_from_two_reports_by_the_servers_own_clock():
    before = report()
    after = report(
        uptime_s=95.0, requests={"hit": 14, "wait": 1, "miss": 3}, loads=3, evictions=1
    )
    now = rates(after, before)
    assert now.requests == 5.0
    assert now.hits == "80.0 %"
    assert (now.loads, now.evictions) == (1.5, 0.5)
    out = drawn(frame(after, before, Sort.USES, None))
    assert re.search(r"a second +5\.0 +80\.0 % +1\.5 +0\.5", out)
    # A server that was started anew has an earlier clock: no rates, not negative ones.
    assert rates(before, after).requests is None


@pytest.mark.parametrize(
    ("sort", "first"),
    [
        (Sort.SIZE, "linear"),
        (Sort.USES, "linear"),
        (Sort.IDLE, "simple"),
        (Sort.NAME, "linear"),
        (Sort.STATE, "simple"),
    ],
)
def test_the_table_is_ordered_as_asked_and_cut_to_the_screen(sort, first):
    out = drawn(frame(report(), None, sort, 1))
    other = {"linear": "simple", "simple": "linear"}[first]
    assert first in out
    assert other not in out
    assert "and 1 more" in out


def test_a_name_cannot_paint_the_terminal():
    resident = replace(report().snapshot.residents[0], name=EVIL, reason=EVIL)
    out = drawn(frame(report(residents=(resident,)), None, Sort.SIZE, None, EVIL), 200)
    assert "\x1b" not in out
    assert "evil\\x1b[31m[bold]\\n" in out


@pytest.mark.process
def test_top_lives_in_a_terminal_until_q(server):
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "runtime", "top", "--url", server[1]],
        stdin=theirs, stdout=theirs, stderr=theirs, cwd=ROOT,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120", "LINES": "30"},
    )  # fmt: skip
    os.close(theirs)
    seen, limit = b"", time.monotonic() + 15
    try:
        while b"linear" not in seen and time.monotonic() < limit:
            if select.select([ours], [], [], 0.2)[0]:
                seen += os.read(ours, 65536)
        os.write(ours, b"s")
        os.write(ours, b"q")
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    assert b"3.0 MiB of 4.0 MiB" in seen


@contextmanager
def answering(data: bytes):
    """A server that says this to whoever comes, once."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(data)

        thread = threading.Thread(target=answer)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread.join()


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n", "is it hotset?"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}", "does not answer like"),
        (b"\x00\x00\x18\x04\x00", "is it the gRPC port?"),
    ],
)
def test_a_stranger_is_told_apart_from_a_server(run, said, told):
    with answering(said) as url:
        code, _, err = run("top", "--url", url, "--once")
    assert code == 1
    assert told in err
    assert "\x00" not in err


def test_an_address_that_is_none_is_refused(run):
    for url in ("http://", "ftp://x", "http://x:port"):
        code, _, err = run("top", "--once", "--url", url)
        assert code == 1
        assert "write it like http://127.0.0.1:8080" in err
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        code, _, err = run("ls", "--url", address)
    assert code == 1
    assert f"no answer from {address}: Connection refused" in err


def test_units():
    assert [size(n) for n in (0, 1023, 1536, 5 << 20, 3 << 30, 2 << 40, 4 << 50)] == [
        "0 B", "1023 B", "1.5 KiB", "5.0 MiB", "3.0 GiB", "2.0 TiB", "4096.0 TiB",
    ]  # fmt: skip
    assert [age(s) for s in (0.0, 9.94, 59.9, 93.4, 3600, 90061)] == [
        "0.0s", "9.9s", "59s", "1m33s", "1h00m", "1d01h",
    ]  # fmt: skip
    assert (share(1, 4), share(0, 0)) == ("25.0 %", "-")


# -- explain --------------------------------------------------------------------------


def test_explain_shows_why_who_and_what_happened(run, server):
    code, out, err = run("explain", "linear", "--url", server[1])
    assert code == 0, err
    assert "linear:1 is UNAVAILABLE: it left 2.5 s ago to make room for other:1" in out
    assert "it would push out" in out
    assert "who leaves first" in out
    assert "room, for other:1; number 1 of 3" in " ".join(out.split())
    code, out, _ = run("explain", "linear", "--url", server[1], "--json")
    assert json.loads(out)["would_push_out"][0]["name"] == "other"


def test_explain_says_what_the_server_says_of_a_model_it_does_not_know(run, server):
    code, _, err = run("explain", "nobody", "--url", server[1])
    assert code == 1
    assert "nobody" in err


def test_ls_says_how_a_graph_is_run():
    told = Resident(
        "m", "1", "READY", 1, "cpu", 0, 0, 0.0, True, code="refused: not faster"
    )
    (row,) = joined([Row("m", "1", 1, note="pinned")], [_of_resident(told)])
    assert (row.note, row.code) == ("pinned", "refused: not faster")
    cells = list(table([row], filed=True).columns[-1].cells)
    assert [str(cell) for cell in cells] == ["pinned, refused: not faster"]
