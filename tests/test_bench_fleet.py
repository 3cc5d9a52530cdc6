"""bench.fleet counts what it should, and the server done by hand is an honest one."""

import asyncio
from contextlib import ExitStack
from pathlib import Path

import pytest

from bench import fleet_models
from bench.fleet_course import Wrong, asked, check, latencies, stream_of
from bench.fleet_models import STORE, make
from bench.fleet_results import Results, Round, figures
from bench.hit_results import GRPCIO
from bench.peers.diy import diy
from bench.peers.running import begin
from bench.right import is_right
from bench.traffic import request


def a_round(rate: float, cold: float) -> Round:
    met = {"hit": [1e-3], "wait": [], "miss": [cold]}
    return Round(rate=rate, latencies=met, cpu=1e-3, others=0.0, memory=1)


def test_goals_are_ratios_of_medians():
    results = Results()
    for number, rate in enumerate((9.0, 300.0, 100.0, 900.0)):
        results.add(GRPCIO, number, a_round(rate, cold=1e-3))
        results.add("diy", number, a_round(100.0, cold=4e-3))
    found = figures(results)
    assert found["rps_to_diy"].value == 3.0  # the round from cold is not in it
    assert found["rps_to_diy"].holds
    assert found["cold_p99_to_diy"].value == 0.25
    assert found["cold_p99_to_diy"].holds


def test_popularity_stays_and_draws_are_new():
    names = [f"m{index}" for index in range(20)]
    first, second = (stream_of(names, 3000, 0, number) for number in (0, 1))
    assert len(first) == len(second) == 3000
    assert first != second
    assert max(names, key=first.count) == max(names, key=second.count)


@pytest.mark.process
async def test_the_server_done_by_hand(tmp_path: Path, monkeypatch):
    """Its answers are right, it evicts the least recently used, and it loads a model
    once for all who wait."""
    monkeypatch.setattr(fleet_models, "HIDDEN", 64)
    fleet = make(tmp_path, 3, lambda: None)
    each = (tmp_path / STORE / "model-0000" / "1" / "model.safetensors").stat().st_size
    a, b, c = fleet.right
    messages = {name: request(name).SerializeToString() for name in fleet.right}
    with ExitStack() as stack:
        contender = diy("safetensors", 2 * each)
        (server,) = begin(
            [contender], tmp_path / "run", lambda of: tmp_path / STORE, "", stack
        )
        await asyncio.to_thread(
            server.wait_right,
            messages[a],
            a,
            lambda said: is_right(said, fleet.right[a]),
        )
        together = await asked(server, [b] * 8, messages)
        check(together, fleet)
        met = latencies(together)
        assert len(met["miss"]) == 1
        one_by_one = []
        for name in (a, c, a, b):  # c takes b's place: a was used since
            one_by_one += await asked(server, [name], messages)
        counts = {how: len(times) for how, times in latencies(one_by_one).items()}
        assert counts == {"hit": 2, "wait": 0, "miss": 2}
        one_by_one[0].answer = one_by_one[1].answer
        with pytest.raises(Wrong, match=a):
            check(one_by_one, fleet)
