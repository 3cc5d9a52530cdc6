"""Served, logged, simulated: the access log is a trace."""

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from eviction.lru import Lru
from runtime import access_log
from runtime.access_log import HEAD, AccessLog
from runtime.simulate import jobs_of, run
from runtime.trace_file import read_trace
from tests import tiny_models
from tests.test_prewarm import ask, engine_over


async def test_serve_log_simulate(tmp_path: Path) -> None:
    for index in range(1, 4):
        tiny_models.linear(tmp_path / "store", f"m{index}", index)
    file = tmp_path / "access.csv"
    async with engine_over(tmp_path / "store", access_log=str(file)) as engine:
        for model in ("m1", "m2", "m1", "m3", "m1"):
            await ask(engine, model)
    trace, _ = read_trace(file)
    named = [trace.names[index] for index in trace.ids]
    assert named == ["m1:1", "m2:1", "m1:1", "m3:1", "m1:1"]
    size = dict(zip(trace.names, trace.nbytes, strict=True))
    assert size["m1:1"] == 256, "measured when it was loaded"
    assert trace.times == sorted(trace.times)
    cells = run(trace, jobs_of(trace, [0.4], ["lru", "tournament"]), 1)
    assert [cell.misses.requests for cell in cells] == [5, 5]


def logged(path: Path, size: int = 1 << 20) -> AccessLog:
    return AccessLog(path, size, Lru(), 1e9)


async def test_it_rotates_and_is_bounded(tmp_path):
    log = logged(tmp_path / "a.csv", 4096)
    for index in range(1000):
        log.on_request(f"m{index}:1@abc", float(index), False)
        if index % 10 == 0:
            await log.flush()
    await log.flush()
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["a.csv", "a.csv.1"]
    for file in files:
        assert file.stat().st_size <= 4096
        assert file.read_bytes().startswith(HEAD.encode())
        read_trace(file)
    assert "m999:1" in files[0].read_text()


async def test_it_goes_on_in_the_same_file(tmp_path):
    for _ in range(2):
        log = logged(tmp_path / "a.csv")
        log.on_request("m:1@abc", 1.0, False)
        log.on_load("m:1@abc", 77, 0.5, 1.5)
        log.on_request("m:1@abc", 2.0, True)
        await log.flush()
    lines = (tmp_path / "a.csv").read_text().splitlines()
    first, second = "1000000001.000000,m:1,,", "1000000002.000000,m:1,77,0.500000"
    assert lines == [HEAD.strip(), first, second, first, second]


async def test_a_disk_that_fails_costs_rows_and_no_request(tmp_path):
    log = logged(tmp_path / "nowhere" / "a.csv")
    log.on_request("m:1@abc", 1.0, False)
    with capture_logs() as lines:
        await log.flush()
    assert lines[0]["event"] == "access log not written"
    assert log.lost == 1


def test_what_waits_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(access_log, "MOST_PENDING", 5)
    log = logged(tmp_path / "a.csv")
    for index in range(9):
        log.on_request("m", float(index), True)
    assert len(log._pending) == 5
    assert log.lost == 4


@pytest.mark.parametrize("name", ['a"b', "a,b", "ünï"])
async def test_any_name_is_read_back(name, tmp_path):
    log = logged(tmp_path / "a.csv")
    log.on_request(f"{name}:1@abc", 1.0, False)
    await log.flush()
    assert read_trace(tmp_path / "a.csv")[0].names == [f"{name}:1"]
