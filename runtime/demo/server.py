"""The server under the demo: a process of its own, started, asked and ended.

Owns: the process (by its pid, nobody else's), its ports and its log. Must not: import
what it runs; it sees the server as an operator does, from outside.
"""

import json
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from runtime.demo.errors import DemoFailed

START_S = 90.0
"""Importing torch and opening a device on a busy machine; a healthy start takes 5."""

STOP_S = 30.0
PEAK_METRIC = "hotset_memory_held_peak_bytes"
ASK_S = 5.0
LOOK_EVERY_S = 0.1
LOG_TAIL = 12
HOST = "127.0.0.1"

# Straight to our own server, whatever proxy the environment names.
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True, slots=True)
class Status:
    """What the demo reads of `/hotset/status`."""

    device: str
    policy: str
    capacity: int
    held: int
    peak_held: int
    loads: int
    evictions: int
    residents: int


@dataclass(slots=True)
class Server:
    """A running server. `exit_code` is set once it has ended by itself."""

    process: "subprocess.Popen[bytes]"
    grpc: str
    http: str
    log: Path
    exit_code: int | None = None

    def status(self) -> Status:
        """Ask it. Raises DemoFailed if it does not answer."""
        try:
            said = json.loads(self._get("/hotset/status"))
        except ValueError as error:
            raise DemoFailed("the server's status is not JSON") from error
        return read_status(said)

    def metric(self, name: str) -> float:
        """One metric without labels, as /metrics shows it to Prometheus."""
        for line in self._get("/metrics").decode().splitlines():
            if line.startswith(name + " "):
                return float(line.split()[1])
        raise DemoFailed(f"the server has no metric {name}")

    def _get(self, path: str) -> bytes:
        try:
            with DIRECT.open(f"http://{self.http}{path}", timeout=ASK_S) as answer:
                said: bytes = answer.read()
        except OSError as error:  # URLError is one
            raise DemoFailed(
                f"the server does not answer {path}; its log:\n{tail(self.log)}"
            ) from error
        return said

    def wait_ready(self, seconds: float = START_S) -> None:
        """Until its health says SERVING. Raises DemoFailed with the log's end."""
        until = time.monotonic() + seconds
        with grpc.insecure_channel(
            self.grpc, options=(("grpc.enable_http_proxy", 0),)
        ) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            while not _serving(stub):
                code = self.process.poll()
                if code is not None:
                    raise DemoFailed(
                        f"the server ended with code {code} before it was ready; "
                        f"its log:\n{tail(self.log)}"
                    )
                if time.monotonic() > until:
                    raise DemoFailed(
                        f"the server was not ready after {seconds:.0f} s; "
                        f"its log:\n{tail(self.log)}"
                    )
                time.sleep(LOOK_EVERY_S)

    def stop(self, seconds: float = STOP_S) -> None:
        """SIGTERM and wait; `exit_code` stays None if it had to be killed."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.exit_code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            end(self.process)


@dataclass(frozen=True, slots=True)
class Ports:
    """Where a server is told to listen."""

    grpc: int
    http: int


def serve_command(store: str, device: str, budget: str, ports: Ports) -> list[str]:
    """`hotset serve` as this interpreter runs it."""
    return [
        *(sys.executable, "-m", "runtime", "serve", "--store", store),
        *("--device", device, "--budget", budget, "--host", HOST),
        *("--grpc-port", str(ports.grpc), "--http-port", str(ports.http)),
    ]


@contextmanager
def serving(command: Sequence[str], ports: Ports, log: Path) -> Iterator[Server]:
    """A server that is ready; gone when the block is left, whatever happened in it."""
    with ExitStack() as stack:
        output = stack.enter_context(log.open("wb"))
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            # Ctrl-C is for us; the server gets its SIGTERM when we are done with it.
            process_group=0,
        )
        stack.callback(end, process)
        server = Server(process, f"{HOST}:{ports.grpc}", f"{HOST}:{ports.http}", log)
        server.wait_ready()
        yield server
        server.stop()


def read_status(said: Mapping[str, object]) -> Status:
    """Parse at the border; DemoFailed names the field that is not as it should be."""

    def number(name: str) -> int:
        value = said.get(name)
        if not isinstance(value, int):
            raise DemoFailed(f"the server's status has no number '{name}'")
        return value

    residents = said.get("residents")
    return Status(
        device=str(said.get("device", "?")),
        policy=str(said.get("policy", "?")),
        capacity=number("capacity"),
        held=number("held"),
        peak_held=number("peak_held"),
        loads=number("loads"),
        evictions=number("evictions"),
        residents=len(residents) if isinstance(residents, list) else 0,
    )


def free_ports() -> Ports:
    """Two ports nobody listens on now; held at once, so that they differ."""
    with socket.socket() as one, socket.socket() as other:
        one.bind((HOST, 0))
        other.bind((HOST, 0))
        return Ports(one.getsockname()[1], other.getsockname()[1])


def end(process: "subprocess.Popen[bytes] | subprocess.Popen[str]") -> None:
    """Make sure that this process, and only this one, is gone."""
    if process.poll() is None:
        process.kill()
        process.wait()


def tail(log: Path) -> str:
    """The last lines of a log."""
    lines = log.read_text(errors="replace").splitlines()[-LOG_TAIL:]
    return "\n".join(lines) or "(empty)"


def _serving(stub: health_pb2_grpc.HealthStub) -> bool:
    try:
        answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=1.0)
    except grpc.RpcError:
        return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
