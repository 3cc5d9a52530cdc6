"""The demo's server process: started, asked, ended, whatever happens in between."""

import sys
import textwrap

import pytest

from runtime.demo.errors import DemoFailed
from runtime.demo.server import (
    Server,
    free_ports,
    read_status,
    serve_command,
    serving,
    tail,
)

pytestmark = pytest.mark.process

STAND_IN = textwrap.dedent(
    """
    # Speaks health over gRPC and the status over HTTP; ends as argv[1] says.
    import json, signal, sys, threading
    from concurrent.futures import ThreadPoolExecutor
    from http.server import BaseHTTPRequestHandler, HTTPServer
    import grpc
    from grpc_health.v1 import health, health_pb2, health_pb2_grpc

    ending, grpc_port, http_port = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    print("hello from the log", flush=True)
    if ending == "dies":
        sys.exit(3)

    class Status(BaseHTTPRequestHandler):
        def do_GET(self):
            body = json.dumps({"device": "cpu", "policy": "lru", "capacity": 100,
                "held": 60, "peak_held": 80, "loads": 5, "evictions": 4,
                "residents": [{}, {}]}).encode()
            if self.path == "/metrics":
                body = b"# HELP a_b x\\na_b_c 1\\na_b 8.5e+01\\na_b{x=\\"y\\"} 3\\n"
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)
        def log_message(self, *args):
            pass

    told = threading.Event()
    signal.signal(signal.SIGTERM, lambda *a: told.set() if ending == "clean" else None)
    http = HTTPServer(("127.0.0.1", http_port), Status)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    server = grpc.server(ThreadPoolExecutor(2))
    checks = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    said = health_pb2.HealthCheckResponse
    checks.set("", said.NOT_SERVING if ending == "never" else said.SERVING)
    server.add_insecure_port(f"127.0.0.1:{grpc_port}")
    server.start()
    told.wait()
    server.stop(None).wait()
    """
)


def stand_in(ending, ports):
    return [sys.executable, "-c", STAND_IN, ending, str(ports.grpc), str(ports.http)]


def test_a_server_is_ready_inside_the_block_and_gone_after_it(tmp_path):
    ports = free_ports()
    with serving(stand_in("clean", ports), ports, tmp_path / "log") as server:
        status = server.status()
        assert server.metric("a_b") == 85.0
        with pytest.raises(DemoFailed, match="no metric a_c"):
            server.metric("a_c")
        assert server.process.poll() is None
    assert (status.capacity, status.held, status.peak_held) == (100, 60, 80)
    assert (status.loads, status.evictions, status.residents) == (5, 4, 2)
    assert server.exit_code == 0
    assert "hello from the log" in tail(tmp_path / "log")


def test_a_server_that_dies_is_told_with_its_log(tmp_path):
    ports = free_ports()
    with (
        pytest.raises(DemoFailed, match=r"(?s)ended with code 3.*hello from the log"),
        serving(stand_in("dies", ports), ports, tmp_path / "log"),
    ):
        pass


def test_a_failing_block_ends_the_server_too(tmp_path):
    ports = free_ports()
    kept: list[Server] = []

    def fail_while_serving():
        with serving(stand_in("clean", ports), ports, tmp_path / "log") as server:
            kept.append(server)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_while_serving()
    assert kept[0].process.poll() is not None


def test_a_server_deaf_to_sigterm_is_killed_and_has_no_exit_code(tmp_path):
    ports = free_ports()
    with serving(stand_in("deaf", ports), ports, tmp_path / "log") as server:
        server.stop(seconds=0.2)
        assert server.exit_code is None
        assert server.process.poll() is not None


def test_a_server_that_never_gets_ready_is_not_waited_for_for_ever(tmp_path):
    ports = free_ports()
    command = stand_in("clean", ports)
    with serving(command, ports, tmp_path / "log") as server:
        elsewhere = free_ports()
        lost = Server(server.process, f"127.0.0.1:{elsewhere.grpc}", "", server.log)
        with pytest.raises(DemoFailed, match="not ready after 0 s"):
            lost.wait_ready(seconds=0.1)


def test_a_status_without_its_numbers_is_refused():
    with pytest.raises(DemoFailed, match="no number 'capacity'"):
        read_status({"device": "cpu", "capacity": "lots"})


def test_a_server_without_a_status_is_a_failure(tmp_path):
    log = tmp_path / "log"
    log.write_text("")
    port = free_ports().http
    lost = Server(None, "", f"127.0.0.1:{port}", log)
    with pytest.raises(DemoFailed, match="does not answer /hotset/status"):
        lost.status()


def test_the_command_is_hotset_serve():
    ports = free_ports()
    command = serve_command("s3://bucket/x", "cpu", "1000", ports)
    assert command[:4] == [sys.executable, "-m", "runtime", "serve"]
    assert command[command.index("--store") + 1] == "s3://bucket/x"
    assert command[command.index("--grpc-port") + 1] == str(ports.grpc)
    assert ports.grpc != ports.http
