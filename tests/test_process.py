"""The real server process under load, over real sockets: every answer is checked."""

import asyncio
import random
import signal
import struct
from pathlib import Path

import grpc
import numpy as np
import pytest

from tests import tiny_models
from tests.server_process import (
    FRONTENDS,
    channel_to,
    errors_in,
    request_for,
    serving,
    skip_without,
)

ONES = np.ones((1, 4), np.float32).tobytes()
MODELS = 200
RESIDENT = 50


def answer_of(response) -> float:
    return struct.unpack_from("<f", response.raw_output_contents[0])[0]


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    for index in range(MODELS):
        tiny_models.linear(folder, f"m{index}", index, extra=1000)
    return folder


@pytest.fixture(params=FRONTENDS)
def frontend(request) -> str:
    skip_without(request.param)
    return request.param


def served(store: Path, log: Path, frontend: str, *flags: str):
    return serving(str(store), log, "--frontend", frontend, *flags)


def size_of(store: Path) -> int:
    return (store / "m0" / "1" / "model.safetensors").stat().st_size


@pytest.mark.process
@pytest.mark.timeout(120)
async def test_200_models_through_a_budget_of_50(store, tmp_path, frontend) -> None:
    """32 clients, a wild mix. No wrong answer, never over budget, nothing left."""
    log = tmp_path / "log"
    budget = size_of(store) * RESIDENT
    async with served(store, log, frontend, "--budget", str(budget)) as server:
        order = random.Random(7)
        picks = [
            min(int(order.paretovariate(0.6)) - 1, MODELS - 1) for _ in range(4000)
        ]
        wrong: list[str] = []

        async def client(mine: list[int]) -> None:
            async with channel_to(server.grpc) as stub:
                for index in mine:
                    response = await stub.ModelInfer(
                        request_for(f"m{index}", ONES), timeout=60
                    )
                    if answer_of(response) != float(index):
                        wrong.append(f"m{index} answered {answer_of(response)}")

        await asyncio.gather(*(client(picks[i::32]) for i in range(32)))
        snapshot = await server.status()
        assert wrong == []
        assert sum(snapshot["requests"].values()) == len(picks)
        assert 0 < snapshot["peak_held"] <= snapshot["capacity"] == budget
        assert snapshot["evictions"] > 0
        assert snapshot["requests"]["hit"] > 0
        assert server.stop() == 0
    assert errors_in(log) == []
    assert '"event": "drained"' in log.read_text()
    assert '"held": 0' in log.read_text()


@pytest.mark.process
@pytest.mark.timeout(180)
async def test_ten_thousand_requests_for_one_cold_model(
    store, tmp_path, frontend
) -> None:
    """One load, ten thousand answers, not one untyped error. grpc's own defaults lose
    half of such a burst (runtime/server.py, PENDING_SOFT)."""
    log = tmp_path / "log"
    async with served(store, log, frontend) as server:
        async with channel_to(server.grpc) as stub:
            calls = [
                stub.ModelInfer(request_for("m7", ONES), timeout=120)
                for _ in range(10_000)
            ]
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
        failures = [o for o in outcomes if isinstance(o, BaseException)]
        assert failures == []
        assert {answer_of(response) for response in outcomes} == {7.0}
        snapshot = await server.status()
        assert snapshot["loads"] == 1
        assert server.stop() == 0
    assert errors_in(log) == []


@pytest.mark.process
@pytest.mark.timeout(60)
async def test_sigterm_under_load_loses_nothing(store, tmp_path, frontend) -> None:
    """What was begun is answered, what comes later is told UNAVAILABLE, exit code 0."""
    log = tmp_path / "log"
    async with served(
        store, log, frontend, "--budget", str(size_of(store) * 3)
    ) as server:
        codes: list[grpc.StatusCode] = []
        answered = asyncio.Event()

        async def client(seed: int) -> None:
            order = random.Random(seed)
            async with channel_to(server.grpc) as stub:
                while True:
                    index = order.randrange(MODELS)
                    try:
                        response = await stub.ModelInfer(
                            request_for(f"m{index}", ONES), timeout=30
                        )
                    except grpc.aio.AioRpcError as error:
                        codes.append(error.code())
                        return
                    assert answer_of(response) == float(index)
                    answered.set()

        clients = [asyncio.create_task(client(seed)) for seed in range(16)]
        await answered.wait()
        server.process.send_signal(signal.SIGTERM)
        await asyncio.gather(*clients)
        assert set(codes) == {grpc.StatusCode.UNAVAILABLE}
        assert await asyncio.to_thread(server.process.wait, 40) == 0
    assert errors_in(log) == []


@pytest.mark.process
@pytest.mark.timeout(60)
async def test_a_second_server_on_the_same_port_says_so(
    store, tmp_path, frontend
) -> None:
    async with served(store, tmp_path / "first", frontend) as server:
        port = server.grpc.rpartition(":")[2]
        log = tmp_path / "log"
        with pytest.raises(AssertionError, match="is another server there already"):
            async with served(store, log, frontend, "--grpc-port", port):
                pass
