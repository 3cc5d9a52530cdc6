"""A real server in a process of its own, for tests that ask over real sockets."""

import asyncio
import contextlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import httpx
import pytest

from protos import open_inference_pb2 as pb
from protos import open_inference_pb2_grpc as rpc

FRONTENDS = ["grpcio", "envoy", "zttp"]
ROOT = Path(__file__).parent.parent
START_S = 60


def skip_without(frontend: str) -> None:
    """Two are extras."""
    if frontend == "zttp" and importlib.util.find_spec("zttp") is None:
        pytest.skip("needs the extra 'zttp'")
    if frontend == "envoy" and importlib.util.find_spec("pyvoy") is None:
        pytest.skip("needs the extra 'envoy' (pyvoy)")


class ServerProcess:
    """`hotset serve` with free ports; `status()` is its own report."""

    def __init__(self, process: subprocess.Popen, log: Path) -> None:
        self.process = process
        self.log = log
        self.grpc = ""
        self.http = ""

    async def started(self) -> None:
        """Wait for the line in which it tells its ports."""
        async with asyncio.timeout(START_S):
            while True:
                assert self.process.poll() is None, self.log.read_text()
                for line in self.log.read_text().splitlines():
                    with contextlib.suppress(json.JSONDecodeError):
                        said = json.loads(line)
                        if said.get("event") == "serving":
                            self.grpc, self.http = said["grpc"], said["http"]
                            return
                await asyncio.sleep(0.05)

    async def status(self) -> dict:
        async with httpx.AsyncClient() as client:
            return (await client.get(f"http://{self.http}/hotset/status")).json()

    async def metrics(self) -> str:
        async with httpx.AsyncClient() as client:
            return (await client.get(f"http://{self.http}/metrics")).text

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(how)
        return self.process.wait(40)


@contextlib.asynccontextmanager
async def serving(store: str, log: Path, *flags: str) -> AsyncIterator[ServerProcess]:
    command = [
        sys.executable, "-m", "runtime", "serve", "--store", store, "--device", "cpu",
        "--grpc-port", "0", "--http-port", "0", "--log-format", "json", *flags,
    ]  # fmt: skip
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with log.open("wb") as out:
        process = subprocess.Popen(  # noqa: ASYNC220 - starts in a millisecond
            command, stdout=out, stderr=subprocess.STDOUT, env=environ, cwd=ROOT
        )
    server = ServerProcess(process, log)
    try:
        await server.started()
        yield server
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(40)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextlib.asynccontextmanager
async def channel_to(address: str) -> AsyncIterator[rpc.GRPCInferenceServiceStub]:
    async with grpc.aio.insecure_channel(address) as channel:
        yield rpc.GRPCInferenceServiceStub(channel)


def request_for(model: str, raw: bytes, rows: int = 1) -> pb.ModelInferRequest:
    return pb.ModelInferRequest(
        model_name=model,
        inputs=[
            pb.ModelInferRequest.InferInputTensor(
                name="x", datatype="FP32", shape=[rows, 4]
            )
        ],
        raw_input_contents=[raw],
    )


def errors_in(log: Path) -> list[str]:
    return [
        line
        for line in log.read_text().splitlines()
        if re.search(r'"level": ?"(error|critical)"|Traceback', line)
    ]
