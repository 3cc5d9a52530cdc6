"""bench.hit counts what it should: a failed or wrong answer never makes a figure."""

import asyncio
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench import h2load
from bench.hit_results import GRPCIO, TRITON, Results, Round, figures
from bench.peers.tree import Tree
from bench.right import is_right
from bench.traffic import example, request
from protos import open_inference_pb2 as pb
from runtime.server import start
from tests.fake_engine import FakeEngine


def a_round(rate: float, cpu: float = 1e-3) -> Round:
    return Round(rate=rate, p50=1e-3, p99=2e-3, cpu=cpu, client=0.0, others=0.0)


def test_ratios_are_of_medians_and_goals_are_judged():
    results = Results()
    for rate in (100.0, 400.0, 900.0):
        results.add(GRPCIO, 32, a_round(rate, cpu=0.8e-3))
        results.add(TRITON, 32, a_round(rate / 4))
    found = figures(results)
    assert found["best_to_triton_rps_c32"].value == 4.0
    assert found["best_to_triton_rps_c32"].holds
    assert found["hotset-grpcio_to_triton_cpu_c32"].holds
    assert not found["best_to_triton_cpu_c32"].holds  # 0.8, and 0.4 was to be reached


def test_a_row_with_a_failure_counts_nowhere():
    results = Results()
    results.add(GRPCIO, 32, a_round(100.0))
    results.add(TRITON, 32, a_round(100.0))
    results.failed[TRITON] = "a wrong answer"
    found = figures(results)
    assert not [name for name in found if "to_triton" in name]
    assert not found["failed_rows"].holds


def test_a_wrong_answer_is_no_right_one():
    right = torch.arange(3.0)
    said = pb.ModelInferResponse(raw_output_contents=[right.numpy().tobytes()])
    assert is_right(said.SerializeToString(), right)
    assert not is_right(said.SerializeToString(), right + 1e-3)
    assert not is_right(said.SerializeToString(), torch.zeros(4))
    assert not is_right(b"", right)


@pytest.mark.parametrize(
    ("requests", "concurrency", "connections"),
    [(1, 1, 1), (3_600, 32, 1), (3_601, 32, 1), (100_000, 8, 8), (10_000, 2, 8)],
)
def test_a_connection_is_used_for_so_many_requests_only(
    tmp_path, monkeypatch, requests, concurrency, connections
):
    asked = []

    def once(self, address, count, *rest) -> h2load.Told:
        asked.append(count)
        return h2load.Told([0.1] * count, 2.0, 3 * count, 0.5)

    monkeypatch.setattr(h2load.Client, "_once", once)
    told = h2load.Client(tmp_path, b"").run("x", requests, concurrency, connections)
    assert sum(asked) == len(told.latencies) == requests
    assert max(asked) <= h2load.A_CONNECTION * min(connections, concurrency)
    assert max(asked) - min(asked) < len(asked)
    assert (told.seconds, told.cpu) == (2.0 * len(asked), 0.5 * len(asked))
    assert told.data == 3 * requests


@pytest.mark.skipif(not shutil.which("h2load"), reason=h2load.HOW_TO)
async def test_errors_are_seen_as_missing_bytes(tmp_path: Path):
    """gRPC sends an error as HTTP 200: only the bytes that are not there tell."""
    async with await start(FakeEngine(), address="127.0.0.1:0") as serving:
        good = h2load.Client(tmp_path, request("no-such-model").SerializeToString())
        told = await asyncio.to_thread(good.run, serving.address, 50, 4)
    assert len(told.latencies) == 50  # all of them HTTP 200
    assert told.data == 0


def test_the_cpu_of_a_tree_outlives_its_processes():
    burn = "sum(i * i for i in range(4_000_000))"
    child = f"subprocess.run([sys.executable, '-c', {burn!r}])"
    code = f"import subprocess, sys; {child}; input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, start_new_session=True
    ) as root:
        tree, most = Tree(root), 0.0
        try:
            while len(tree.members()) < 2:
                pass
            while len(tree.members()) > 1:
                most = max(most, tree.cpu_seconds())
            assert 0 < most <= tree.cpu_seconds()
        finally:
            tree.stop()
        assert tree.ended
        assert not tree.members()


def test_the_request_is_framed_as_grpc_wants_it():
    message = request("mlp").SerializeToString()
    framed = h2load.framed(message)
    assert framed[0] == 0
    assert int.from_bytes(framed[1:5], "big") == len(message) == len(framed) - 5
    assert example().numpy().tobytes() in framed
