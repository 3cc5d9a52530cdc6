"""`hotset simulate` and `hotset plan`: from a file to tables, a page and a sentence."""

import gzip
import json
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from bench.policies import plain_lru
from eviction.simulate.trace import Trace, TraceRefused
from runtime.capacity import GIB, Point, advise, ladder, point_at, worth_of_a_gib
from runtime.commands import Failed
from runtime.commands.plan import plan
from runtime.commands.simulate import parse_policies, parse_shares, simulate
from runtime.simulate import CLAIRVOYANT, budget_of, jobs_of, run
from runtime.simulate_report import show, write_page
from runtime.trace_file import Reload, read_trace


def csv_of(folder: Path, text: str, name: str = "t.csv") -> Path:
    path = folder / name
    path.write_text(text)
    return path


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    rng = random.Random(1)
    lines = ["time,model,nbytes,reload_s"]
    for i in range(600):
        m = i if i < 30 else min(int(rng.expovariate(0.15)), 29)
        lines.append(f"{i * 0.2:.1f},m{m},{(1 + m % 5) * 10**8},{0.2 + m % 3 * 0.1}")
    return csv_of(tmp_path, "\n".join(lines) + "\n")


def test_a_trace_with_everything_needs_no_assumption(recorded: Path) -> None:
    trace, notes = read_trace(recorded)
    assert notes == []
    assert (len(trace), trace.name, trace.times[0]) == (600, "t", 0.0)
    at = trace.names.index("m7")
    assert trace.nbytes[at] == 3 * 10**8
    assert trace.reload_s[at] == pytest.approx(0.3)


def test_other_names_of_columns_gzip_and_disorder_are_read(tmp_path: Path) -> None:
    path = tmp_path / "log.csv.gz"
    with gzip.open(path, "wt") as file:
        file.write("model_id,t_seconds\nb,12.5\na,10\nb,11\n")
    trace, notes = read_trace(path, reload=Reload(1.0, 1e8))
    assert (trace.times, trace.names) == ([0.0, 1.0, 2.5], ["b", "a"])
    assert [trace.names[i] for i in trace.ids] == ["a", "b", "b"]
    assert trace.reload_s == [2.0, 2.0]
    assert any("100 MB each is assumed" in note for note in notes)


def test_parquet_reads_as_csv_does(recorded: Path, tmp_path: Path) -> None:
    csv = pytest.importorskip("pyarrow.csv", reason="pyarrow is not installed")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "t.parquet"
    parquet.write_table(csv.read_csv(recorded), path)
    assert read_trace(path) == read_trace(recorded)


def test_sizes_win_and_strangers_draw_theirs_by_name(tmp_path: Path) -> None:
    requests = csv_of(tmp_path, "t,id,nbytes\n0,a,5\n1,b,5\n2,c,5\n")
    plain = csv_of(tmp_path, "t,id\n0,a\n1,b\n2,c\n", "plain.csv")
    sizes = csv_of(tmp_path, "name,params_m,load_s\na,3,0.5\nx,7,\n", "sizes.csv")
    trace, _ = read_trace(requests, sizes)
    assert list(trace.nbytes) == [6_000_000, 5, 5]
    assert trace.reload_s[0] == 0.5
    drawn, notes = read_trace(plain, sizes)
    assert set(drawn.nbytes) <= {6_000_000, 14_000_000}
    assert drawn == read_trace(plain, sizes)[0]
    assert "2 models are not in the sizes; theirs are drawn from it" in notes


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no requests in it"),
        ("time,model\n", "no requests in it"),
        ("a,b\n1,2\n", "none of the columns time"),
        ("time,x\n1,2\n", "none of the columns model"),
        ("time,model\nnoon,m\n", "line 2 is not a request"),
        ("time,model\n1,m\n2\n", "line 3 is not a request"),
        ("time,model,nbytes\n1,m,many\n", "line 2 is not a request"),
        ("time,model,nbytes\n1,m,-4\n", "sizes are above 0"),
        ("time,model\nnan,m\n", "line 2 is not a request"),
        ("time,model,reload_s\n1,m,inf\n", "line 2 is not a request"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(
    tmp_path: Path, text: str, says: str
) -> None:
    with pytest.raises(TraceRefused, match=says):
        read_trace(csv_of(tmp_path, text))


def test_files_that_are_not_what_they_say_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TraceRefused, match="cannot be read: No such file"):
        read_trace(tmp_path / "absent.csv")
    with pytest.raises(TraceRefused, match="cannot be read"):
        read_trace(csv_of(tmp_path, "no gzip", "t.csv.gz"))
    with pytest.raises(TraceRefused, match="not a Parquet file"):
        read_trace(csv_of(tmp_path, "no parquet", "t.parquet"))
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TraceRefused, match="not what its name says"):
        read_trace(tmp_path / "bytes.csv")
    sizes = csv_of(tmp_path, "model,weight\na,1\n", "sizes.csv")
    requests = csv_of(tmp_path, "time,model\n1,a\n")
    with pytest.raises(TraceRefused, match="no column of sizes"):
        read_trace(requests, sizes)
    with pytest.raises(TraceRefused, match="line 2 is not a size"):
        read_trace(requests, csv_of(tmp_path, "model,nbytes\na,x\n", "sizes.csv"))


def app_of(command: Callable[..., None]) -> typer.Typer:
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(command)
    return app


def test_simulate_compares_and_writes_a_page(recorded: Path, tmp_path: Path) -> None:
    out = tmp_path / "report"
    arguments = [str(recorded), "--budget", "10%,30%", "--out", str(out)]
    result = CliRunner().invoke(app_of(simulate), [*arguments, "--workers", "1"])
    assert result.exit_code == 0, result.output
    for word in ("tournament", "lru", "belady-cost", "packed", "lp", "30% of all"):
        assert word in result.output
    found = json.loads((out / "simulate.json").read_text())
    assert (found["requests"], found["models"]) == (600, 30)
    cost = {(c["policy"], c["share"]): c["missed_cost_s"] for c in found["cells"]}
    for share in (0.1, 0.3):
        assert cost["lp", share] <= cost["packed", share] <= cost["lru", share]
        assert cost["lp", share] <= cost["tournament", share]
    page = (out / "simulate.html").read_text()
    assert "data:image/png;base64," in page
    assert page.count("<table>") == 2
    assert (out / "simulate.png").read_bytes().startswith(b"\x89PNG")


def test_simulate_tells_waits_where_they_are_asked_for(
    recorded: Path, tmp_path: Path
) -> None:
    arguments = [str(recorded), "--budget", "20%", "--policy", "lru,packed"]
    arguments += ["--out", str(tmp_path), "--workers", "1"]
    without = CliRunner().invoke(app_of(simulate), arguments)
    assert "p99 wait" not in without.output
    result = CliRunner().invoke(
        app_of(simulate),
        [*arguments, "--waits", "--speed", "3"],
        env={"COLUMNS": "120"},
    )
    assert result.exit_code == 0, result.output
    assert "p99 wait" in result.output
    cells = json.loads((tmp_path / "simulate.json").read_text())["cells"]
    lru, packed = sorted(cells, key=lambda cell: cell["policy"])
    trace, _ = read_trace(recorded)
    again = point_at(trace, "lru", budget_of(trace, 0.2), 3.0)
    assert packed["wait"] is None
    told = (lru["wait"]["mean_s"], lru["wait"]["p50_s"], lru["wait"]["p99_s"])
    assert told == (again.mean_s, again.p50_s, again.p99_s)
    assert f"{again.p99_s:.3f} s" in (tmp_path / "simulate.html").read_text()


def test_a_page_escapes_the_names_it_was_given(tmp_path: Path) -> None:
    trace = Trace("<script>", [0.0], [0], ["m"], [10], [1.0])
    cells = run(trace, jobs_of(trace, [1.0], ["lru"]), 1)
    write_page(tmp_path / "page.html", trace, ["a & <b>"], cells)
    page = (tmp_path / "page.html").read_text()
    assert "<script>" not in page
    assert "a &amp; &lt;b&gt;." in page


@pytest.mark.process
def test_workers_count_as_one_process_does(recorded: Path) -> None:
    trace, _ = read_trace(recorded)
    jobs = jobs_of(trace, [0.1, 0.2], ["lru", "gdsf", *CLAIRVOYANT])
    told: list[object] = []
    alone, shared = run(trace, jobs, 1), run(trace, jobs, 2, told.append)
    assert [(c.policy, c.budget, c.misses, c.missed_cost) for c in alone] == [
        (c.policy, c.budget, c.misses, c.missed_cost) for c in shared
    ]
    assert len(told) == len(jobs)


def test_a_table_ranks_by_cost(recorded: Path) -> None:
    trace, _ = read_trace(recorded)
    console = Console(record=True, width=100)
    show(console, run(trace, jobs_of(trace, [0.2], ["lru", "gdsf", "packed"]), 1))
    text = console.export_text()
    assert text.index("packed") < text.index("gdsf") < text.index("lru")
    assert re.search(r"lru .*1\.000", text)


def test_budgets_and_policies_are_understood_or_refused() -> None:
    assert parse_shares("20%, 5%,0.1") == [0.05, 0.1, 0.2]
    for wrong in ("0", "110%", "ten", ""):
        with pytest.raises(typer.BadParameter, match="not a share"):
            parse_shares(wrong)
    assert parse_policies("lru,gdsf,lru") == ["lru", "gdsf"]
    assert {"lru", "tournament", "packed"} <= set(parse_policies("all"))
    with pytest.raises(typer.BadParameter, match="no policy 'best'"):
        parse_policies("best")


def test_a_budget_fits_the_largest_model() -> None:
    trace = Trace("t", [0.0], [0], ["a", "b"], [90, 10], [1.0, 1.0])
    assert budget_of(trace, 0.05) == 90
    assert budget_of(trace, 1.0) == 100


def test_the_ladder_rises_from_the_largest_model_to_all(recorded: Path) -> None:
    trace, _ = read_trace(recorded)
    rungs = ladder(trace)
    assert rungs == sorted(set(rungs))
    assert rungs[0] == max(trace.nbytes)
    assert rungs[-1] == trace.total_bytes


POINTS = [
    Point(1 * GIB, 100, 3600.0, 0.5, 0.1, 4.0),
    Point(3 * GIB, 40, 1600.0, 0.1, 0.0, 1.0),
    Point(5 * GIB, 40, 1700.0, 0.1, 0.0, 0.9),
]


def test_the_worth_of_a_gib_is_the_slope_per_hour() -> None:
    assert worth_of_a_gib(POINTS, hours=2.0) == [500.0, 0.0, 0.0]


def test_the_advice_is_the_smallest_budget_that_meets_the_target() -> None:
    advice = advise(POINTS, 1.0, 2.0)
    assert advice.chosen is POINTS[1]
    assert advice.sentence == (
        "3.00 GiB buy a p99 wait of 1.00 s (target 1 s) and a mean of 100.0 ms;"
        " one more GiB is worth 0.0 s of loading an hour."
    )
    none = advise(POINTS, 0.5, 2.0)
    assert none.chosen is None
    assert none.sentence.startswith("No budget buys a p99 wait of 0.5 s")


@pytest.mark.process
def test_plan_ends_with_one_sentence(recorded: Path, tmp_path: Path) -> None:
    out = tmp_path / "plan"
    arguments = [str(recorded), "--policy", "gdsf", "--p99", "1", "--out", str(out)]
    result = CliRunner().invoke(app_of(plan), arguments)
    assert result.exit_code == 0, result.output
    found = json.loads((out / "plan.json").read_text())
    assert found["sentence"] in " ".join(result.output.split())
    budgets = [p["budget"] for p in found["points"]]
    assert budgets == sorted(budgets)
    trace, _ = read_trace(recorded)
    again = point_at(trace, "gdsf", budgets[3], 1.0)
    assert found["points"][3]["loading_s"] == again.loading_s
    lru = [p["lru_loading_s"] for p in found["points"]]
    assert lru == pytest.approx([plain_lru(trace, budget) for budget in budgets])
    assert (out / "plan.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("command", [simulate, plan])
def test_what_cannot_be_done_is_a_sentence(
    command: Callable[..., None], recorded: Path, tmp_path: Path
) -> None:
    result = CliRunner().invoke(app_of(command), [str(tmp_path / "absent.csv")])
    assert isinstance(result.exception, Failed)
    assert "absent.csv: cannot be read" in str(result.exception)
    refused = CliRunner().invoke(
        app_of(command), [str(recorded), "--policy", "best"], env={"NO_COLOR": "1"}
    )
    assert refused.exit_code == 2
    assert "no policy 'best'" in refused.output
