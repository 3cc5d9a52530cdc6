"""The benchmarks run, say what they are, and end in a line that programs can read."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from bench import compile as compile_bench
from bench import cross, floor, micro, minilm, result, vram, zipf
from bench.client import quantile
from bench.result import Figure, command, finish, line, parser, rounded
from bench.strangers import strangers
from bench.traffic import Stored, shares
from bench.traffic import zipf as zipf_stream

ROOT = Path(__file__).parent.parent

OURS = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_XDIST")}
ALONE = {**OURS, "OMP_NUM_THREADS": "1"}
"""A bench that runs pytest is no worker of these tests."""


def result_of(*arguments: str) -> dict[str, dict[str, object]]:
    """Run a bench; its last line as a dict."""
    ended = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        env=ALONE,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert ended.returncode == 0, ended.stderr
    last = ended.stdout.splitlines()[-1]
    assert last.startswith("RESULT {")
    found = json.loads(last.removeprefix("RESULT "))
    for figure in found.values():
        assert set(figure) == {"value", "goal", "holds"}
        assert figure["value"] >= 0
    return found


@pytest.mark.parametrize(
    "bench", [compile_bench, cross, floor, micro, minilm, vram, zipf]
)
def test_help_teaches(bench, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["bench", "--help"])
    with pytest.raises(SystemExit) as ended:
        bench.read_options()
    assert ended.value.code == 0
    said = capsys.readouterr().out
    for word in ("--quick", "--out", "examples:", bench.__doc__.splitlines()[0]):
        assert word in said


@pytest.mark.parametrize(
    ("bench", "wrong"),
    [
        (compile_bench, ["--only", "mlp,nobody"]),
        (minilm, ["--only", "kserve,nobody"]),
        (floor, ["--only", "floor,nobody"]),
        (floor, ["--rounds", "-1"]),
        (vram, ["--sizes", "4,5"]),
        (vram, ["--skip", "astrology"]),
        (vram, ["--swaps", "-1"]),
        (zipf, ["--policies", "lru,astrology"]),
        (zipf, ["--budgets", "10,many"]),
        (zipf, ["--budgets", "0"]),
        (zipf, ["--budgets", "101"]),
    ],
)
def test_what_is_not_understood_is_refused(bench, wrong, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["bench", *wrong])
    with pytest.raises(SystemExit) as ended:
        bench.read_options()
    assert ended.value.code == 2


def test_a_goal_holds_from_its_own_side() -> None:
    assert Figure(5.0).holds
    assert Figure(5.0, goal=5.0).holds
    assert not Figure(5.1, goal=5.0).holds
    assert Figure(0.96, goal=0.95, better="higher").holds
    assert not Figure(0.94, goal=0.95, better="higher").holds


def test_the_result_line() -> None:
    said = line({"a_us": Figure(1.23456, "us"), "loads": Figure(123456, goal=1.0)})
    assert said == (
        'RESULT {"a_us": {"value": 1.235, "goal": null, "holds": true}, '
        '"loads": {"value": 123456, "goal": 1.0, "holds": false}}'
    )
    assert rounded(98765.4) == 98770.0


def test_the_command_to_repeat_it_names_no_folder() -> None:
    given = ["--quick", "--out", "/somewhere", "--tag", "a b", "--out=/else"]
    assert command("zipf", given) == "python -m bench.zipf --quick --tag 'a b'"


def test_a_result_says_where_and_with_what(tmp_path, capsys) -> None:
    options = parser("A bench.").parse_args(["--out", str(tmp_path), "--tag", "here"])
    drawn: list[Path] = []
    finish("some", options, {"x": Figure(2.0, "us")}, {"k": [1]}, drawn.append)
    said = json.loads((tmp_path / "some-here.json").read_text())
    assert said["figures"]["x"] == {
        "value": 2.0, "goal": None, "holds": True, "unit": "us",
    }  # fmt: skip
    assert said["details"] == {"k": [1]}
    assert said["versions"]["torch"][0].isdigit()
    assert said["machine"]["cores"] >= 1
    assert {"date", "command", "commit"} <= set(said)
    assert drawn == [tmp_path / "some-here.png"]
    assert capsys.readouterr().out.startswith("RESULT ")


@pytest.mark.parametrize(
    ("said", "means"), [("200000\n", 200.0), ("0\n", 0.0), ("", None)]
)
def test_a_result_says_whether_idle_cores_look_before_they_sleep(
    tmp_path, monkeypatch, said, means
) -> None:
    (tmp_path / "ns").write_text(said)
    (tmp_path / "governor").write_text("haltpoll\n")
    monkeypatch.setattr(result, "GOVERNOR", str(tmp_path / "governor"))
    monkeypatch.setattr(result, "HALT_POLL", str(tmp_path / "ns"))
    assert result.machine()["halt_poll_us"] == means
    (tmp_path / "governor").write_text("menu\n")  # then nobody asks the other
    assert result.machine()["halt_poll_us"] is None


def test_strangers_end_with_the_block_and_with_the_bench() -> None:
    me = psutil.Process()
    before = {child.pid for child in me.children()}
    with strangers(2):
        there = [child for child in me.children() if child.pid not in before]
        assert len(there) == 2
        until = time.monotonic() + 10
        while any(each.cpu_times().user < 0.05 for each in there):
            assert time.monotonic() < until, "they do no sums"
            time.sleep(0.01)
    assert not any(each.is_running() for each in there)
    script = """
import os
import psutil
from bench.strangers import strangers
held = strangers(1)
held.__enter__()
print(psutil.Process().children()[0].pid, flush=True)
os._exit(0)
"""
    ended = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    pid = int(ended.stdout)
    with contextlib.suppress(psutil.NoSuchProcess):
        orphan, until = psutil.Process(pid), time.monotonic() + 10
        while orphan.status() != psutil.STATUS_ZOMBIE:  # not every init reaps
            assert time.monotonic() < until, "it does sums for ever"
            time.sleep(0.01)


def test_a_quick_run_leaves_no_files(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr("bench.result.RESULTS", tmp_path)
    finish("some", parser("").parse_args(["--quick"]), {"x": Figure(2.0)}, {})
    assert list(tmp_path.iterdir()) == []


def test_quantiles_are_values_that_were_seen() -> None:
    values = [float(v) for v in range(100, 0, -1)]
    assert quantile(values, 0.5) == 51.0
    assert quantile(values, 0.99) == 100.0
    assert quantile([7.0], 0.99) == 7.0


def test_the_stream_is_the_same_for_everybody_and_follows_its_law() -> None:
    names = [f"m{i}" for i in range(20)]
    stream = zipf_stream(names, 1.0, 20_000, seed=3)
    assert stream == zipf_stream(names, 1.0, 20_000, seed=3)
    assert stream != zipf_stream(names, 1.0, 20_000, seed=4)
    wanted = shares(20, 1.0)
    assert sum(wanted) == pytest.approx(1.0)
    seen = [count / 20_000 for _, count in Counter(stream).most_common()]
    assert seen == pytest.approx(wanted, abs=0.01)


def test_foreknowledge_fills_the_budget_by_uses_per_byte() -> None:
    fleet = [Stored("big", 80), Stored("a", 10), Stored("b", 10)]
    stream = ["big"] * 6 + ["a"] * 3 + ["b"] * 2
    plan = zipf.Plan(Path(), fleet, stream, callers=1)
    assert plan.foreknown(20) == pytest.approx((2 + 1) / 11)
    assert plan.foreknown(100) == pytest.approx((5 + 2 + 1) / 11)


def test_a_model_beyond_the_budget_is_said_before_anything_runs() -> None:
    plan = zipf.Plan(Path(), [Stored("big", 80), Stored("a", 20)], ["a"], callers=1)
    zipf.check_fits(plan, 80)
    with pytest.raises(SystemExit, match="take more models or a larger budget"):
        zipf.check_fits(plan, 79)


def test_the_socket_gets_the_middle_budget() -> None:
    assert zipf.over_the_socket([40, 10, 20]) == 20
    assert zipf.over_the_socket([60]) == 60


@pytest.mark.process
@pytest.mark.timeout(120)
def test_floor_compares_servers_that_gave_right_answers() -> None:
    found = result_of(
        "bench.floor", "--quick", "--only", "floor,hotset",
        "--rounds", "1", "--seconds", "0.1",
    )  # fmt: skip
    for concurrency in ("c1", "c8"):
        ratio = found[f"hotset_to_floor_{concurrency}"]["value"]
        p50s = [found[f"{n}_p50_{concurrency}"]["value"] for n in ("hotset", "floor")]
        assert ratio == pytest.approx(p50s[0] / p50s[1], rel=0.01)


@pytest.mark.process
@pytest.mark.timeout(120)
def test_micro_times_a_step() -> None:
    found = result_of(
        "bench.micro", "--quick", "--only", "conform", "--seconds", "0.05"
    )
    assert list(found) == ["conform_us"]


@pytest.mark.process
@pytest.mark.timeout(120)
def test_cross_compares_answers_and_draws(tmp_path) -> None:
    found = result_of(
        "bench.cross", "--quick", "--only", "mlp_small", "--models", "5",
        "--rounds", "1", "--turns", "1", "--out", str(tmp_path),
    )  # fmt: skip
    assert found["mlp_small_one_by_one_to_together"]["value"] > 0
    assert (tmp_path / "cross.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.process
@pytest.mark.timeout(120)
def test_zipf_stays_within_its_budget(tmp_path) -> None:
    found = result_of(
        "bench.zipf", "--quick", "--models", "8", "--requests", "60", "--callers", "1",
        "--budgets", "60", "--policies", "lru", "--out", str(tmp_path),
    )  # fmt: skip
    assert found["peak_of_budget"]["holds"]
    assert 0 < found["lru_60_hit_ratio"]["value"] <= 1
    assert found["socket_rate"]["value"] > 0
    assert (tmp_path / "zipf.png").read_bytes().startswith(b"\x89PNG")
    (cell,) = json.loads((tmp_path / "zipf.json").read_text())["details"]["cells"]
    assert cell["loads"] >= 1
