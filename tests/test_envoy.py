"""The process inside Envoy, and Envoy's configurations: with a real Envoy each."""

import asyncio
import base64
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import grpc
import httpx
import numpy as np
import psutil
import pytest

from loader import slices
from protos import open_inference_pb2_grpc as rpc
from runtime.config import Settings
from runtime.envoy import launch, rank
from runtime.envoy.admin import Admin
from runtime.envoy.bootstrap import bootstrap, ours
from runtime.envoy.run import PYTHON, VARIABLE, Run, hand_over, taken_over
from runtime.envoy.stage import DESERTED
from tests import tiny_models
from tests.envoy_process import EnvoyProcess
from tests.server_process import ROOT, channel_to, request_for, serving, skip_without
from tests.test_slices import needs_slices

EDGE = ROOT / "docs" / "envoy" / "edge.yaml"
ONES = np.ones((1, 4), np.float32).tobytes()

pytestmark = pytest.mark.timeout(90)


@pytest.fixture(scope="module", autouse=True)
def _envoy():
    skip_without("envoy")


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    tiny_models.linear(folder, "m", 7)
    return folder


# ---- the configuration ------------------------------------------------------------


def validate(path: Path, tmp_path: Path) -> subprocess.CompletedProcess:
    """`envoy --mode validate`, which starts Python, but no server."""
    envoy, module, libpython = launch.installed()
    (tmp_path / "libhotset.so").symlink_to(module)
    environ = launch.environment(libpython, tmp_path)
    environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), environ["PYTHONPATH"]])
    return subprocess.run(
        [envoy, "--mode", "validate", "-c", str(path), "-l", "error"],
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_our_own_configuration_is_valid(tmp_path):
    path = tmp_path / "envoy.json"
    whole = bootstrap("127.0.0.1", 0, 0) | ours(str(tmp_path / "admin"), True)
    path.write_text(json.dumps(whole))
    done = validate(path, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "OK" in done.stdout


@pytest.mark.parametrize("prefix", ["", "#otel "])
def test_the_edge_configuration_is_valid(tmp_path, secrets, prefix):
    path = tmp_path / "edge.yaml"
    path.write_text(
        edge(secrets).replace(f"\n{prefix}", "\n") if prefix else edge(secrets)
    )
    done = validate(path, tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_edge_has_the_limits_of_the_built_in_one():
    yaml = pytest.importorskip("yaml")
    theirs = yaml.safe_load(EDGE.read_text())
    built = bootstrap("0.0.0.0", 8081, 8080)
    assert theirs["overload_manager"] == built["overload_manager"]
    theirs, built = (c["static_resources"]["listeners"][0] for c in (theirs, built))
    for key in ("per_connection_buffer_limit_bytes", "enable_reuse_port", "name"):
        assert theirs[key] == built[key]
    theirs, built = (
        listener["filter_chains"][0]["filters"][0]["typed_config"]
        for listener in (theirs, built)
    )
    assert {key: theirs[key] for key in built if "filters" not in key} == {
        key: built[key] for key in built if "filters" not in key
    }
    assert theirs["http_filters"][-1] == built["http_filters"][-1]


# ---- TLS, client certificates, tokens ---------------------------------------------


class Secrets:
    """A certificate authority and what it has signed, made by openssl."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._run("genpkey", "-algorithm", "RSA", "-out", "token.key")
        self._run(
            "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
            "-subj", "/CN=authority", "-keyout", "ca.key", "-out", "ca.crt",
        )  # fmt: skip
        (folder / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1")
        for name in ("tls", "client"):
            self._run(
                "req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}",
                "-keyout", f"{name}.key", "-out", f"{name}.csr",
            )  # fmt: skip
            self._run(
                "x509", "-req", "-in", f"{name}.csr", "-CA", "ca.crt", "-CAkey",
                "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "names",
                "-out", f"{name}.crt",
            )  # fmt: skip
        modulus = self._run("rsa", "-in", "token.key", "-noout", "-modulus")
        n = bytes.fromhex(modulus.decode().strip().partition("=")[2])
        key = {"kty": "RSA", "alg": "RS256", "kid": "1", "n": url64(n), "e": "AQAB"}
        (folder / "jwks.json").write_text(json.dumps({"keys": [key]}))

    def _run(self, *arguments: str, stdin: bytes | None = None) -> bytes:
        return subprocess.run(
            ["openssl", *arguments],
            cwd=self.folder,
            input=stdin,
            check=True,
            capture_output=True,
        ).stdout

    def __getitem__(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    def token(self, **changes) -> str:
        head = {"alg": "RS256", "kid": "1", "typ": "JWT"}
        said = {
            "iss": "https://issuer.example",
            "aud": "hotset",
            "exp": int(time.time()) + 600,
        }
        parts = [url64(json.dumps(p).encode()) for p in (head, said | changes)]
        signed = ".".join(parts)
        signature = self._run(
            "dgst", "-sha256", "-sign", "token.key", stdin=signed.encode()
        )
        return f"{signed}.{url64(signature)}"


def url64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@pytest.fixture(scope="module")
def secrets(tmp_path_factory) -> Secrets:
    try:
        subprocess.run(["openssl", "version"], check=True, capture_output=True)
    except OSError:
        pytest.skip("needs the openssl command")
    return Secrets(tmp_path_factory.mktemp("secrets"))


def edge(secrets: Secrets, port: int = 0) -> str:
    """The shipped file, with our secrets, on a port of its own."""
    text = EDGE.read_text().replace("/etc/hotset", str(secrets.folder))
    text = text.replace("0.0.0.0", "127.0.0.1").replace(
        "port_value: 8080", "port_value: 0"
    )
    return text.replace("port_value: 8081", f"port_value: {port}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


async def test_the_edge_asks_for_a_certificate_and_a_token(store, secrets, tmp_path):
    path = tmp_path / "edge.yaml"
    accessed = tmp_path / "accessed"
    text = edge(secrets, free_port()).replace("/dev/stdout", str(accessed))
    path.write_text(text)
    flags = ("--frontend", "envoy", "--envoy-config", str(path))
    async with serving(str(store), tmp_path / "log", *flags) as server:

        async def outcome(credentials, token=""):
            metadata = [("authorization", f"Bearer {token}")] if token else []
            async with grpc.aio.secure_channel(server.grpc, credentials) as channel:
                stub = rpc.GRPCInferenceServiceStub(channel)
                call = stub.ModelInfer(
                    request_for("m", ONES), timeout=10, metadata=metadata
                )
                return (await call.code()).name

        known = grpc.ssl_channel_credentials(
            secrets["ca.crt"], secrets["client.key"], secrets["client.crt"]
        )
        stranger = grpc.ssl_channel_credentials(secrets["ca.crt"])
        assert await outcome(known, secrets.token()) == "OK"
        assert await outcome(known) == "UNAUTHENTICATED"
        assert await outcome(known, secrets.token(exp=1)) == "UNAUTHENTICATED"
        assert await outcome(known, secrets.token(aud="b")) == "PERMISSION_DENIED"
        assert await outcome(known, secrets.token()[:-8] + "AAAAAAAA") == (
            "UNAUTHENTICATED"
        )
        assert await outcome(stranger, secrets.token()) == "UNAVAILABLE"
        # Probes and scrapers reach health and metrics without either, and no more.
        async with httpx.AsyncClient(base_url=f"http://{server.http}") as client:
            assert (await client.get("/v2/health/ready")).json()["ready"]
            assert (await client.get("/metrics")).status_code == 200
            assert (await client.get("/v2/models/m")).status_code == 404
        assert server.stop() == 0
    # What failed is in the access log, written to its end before the process is gone.
    lines = [json.loads(line) for line in accessed.read_text().splitlines()]
    assert {line["event"] for line in lines} == {"access"}
    ends = [line["grpc_status"] for line in lines]
    assert ends.count("Unauthenticated") == 3, ends
    assert "/v2/models/m" not in {line["path"] for line in lines}


# ---- the process ------------------------------------------------------------------


def run_serve(*flags: str, **environ: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "runtime", "serve", "--frontend", "envoy", *flags],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environ},
        capture_output=True,
        text=True,
        timeout=60,
    )


async def test_half_a_body_ends_at_its_deadline(store, tmp_path):
    """And what comes of it afterwards harms nobody."""
    log = tmp_path / "log"
    async with serving(str(store), log, "--frontend", "envoy") as server:
        host, _, port = server.grpc.rpartition(":")
        head = (
            "POST /inference.GRPCInferenceService/ModelInfer HTTP/1.1\r\nhost: h\r\n"
            "content-type: application/grpc\r\ngrpc-timeout: 300m\r\n"
            "content-length: 105\r\n\r\n"
        )
        for sent in (b"", b"\0\0", b"\0\0\0\0\x64abc"):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(head.encode() + sent)
            answer = await reader.readuntil(b"\r\n\r\n")
            assert b"grpc-status: 4\r\n" in answer
            writer.write(bytes(105 - len(sent)))
            with contextlib.suppress(OSError):
                await writer.drain()
            writer.close()
        async with channel_to(server.grpc) as stub:
            await stub.ModelInfer(request_for("m", ONES), timeout=10)
        assert server.stop() == 0
    assert "InvalidState" not in log.read_text()


def test_without_the_extra_it_says_what_to_install(store, tmp_path):
    (tmp_path / "envoy.py").write_text("raise ImportError")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = run_serve("--store", str(store), PYTHONPATH=path)
    assert done.returncode == 1
    assert done.stderr == (
        "hotset serve: --frontend envoy needs Envoy: pip install 'hotset[envoy]'\n"
    )


def test_what_fails_inside_is_one_line_too(store):
    flags = ("--grpc-port", "0", "--http-port", "0", "--device", "cuda:99")
    done = run_serve("--store", str(store), "--log-format", "json", *flags)
    assert done.returncode == 1
    *_, last = done.stderr.splitlines()
    assert last.startswith("hotset serve: --device cuda:99: ")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("frontends", ["0", "1"])
def test_a_port_of_ones_own_that_is_taken_ends_it(store, tmp_path, frontends):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        path = tmp_path / "envoy.json"
        port = taken.getsockname()[1]
        path.write_text(json.dumps(bootstrap("127.0.0.1", port, 0)))
        flags = ("--envoy-config", str(path), "--frontends", frontends)
        done = run_serve("--store", str(store), "--device", "cpu", *flags)
    assert done.returncode == 1
    assert f"cannot bind '127.0.0.1:{port}': Address already in use" in done.stderr
    assert "hotset serve: Envoy does not listen" in done.stderr


async def test_nothing_secret_is_on_the_command_line_or_left_behind(
    store, tmp_path, monkeypatch
):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    flags = ("--frontend", "envoy", "--server-name", "hush")
    async with serving(str(store), tmp_path / "log", *flags) as server:
        command = psutil.Process(server.process.pid).cmdline()
        assert command[0].endswith("envoy")
        assert not any("hush" in argument for argument in command)
        (folder,) = temporary.iterdir()
        assert folder.stat().st_mode & 0o077 == 0
        async with httpx.AsyncClient() as client:
            said = (await client.get(f"http://{server.http}/v2")).json()
        assert said["name"] == "hush"
        assert server.stop() == 0
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize(
    ("end", "code"), [("quits", DESERTED), ("is killed", -signal.SIGKILL)]
)
async def test_an_envoy_that_ends_by_itself_is_a_failure(
    store, tmp_path, monkeypatch, end, code
):
    """Whoever started us must not take it for a server that was told to stop."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    log = tmp_path / "log"
    async with serving(str(store), log, "--frontend", "envoy") as server:
        async with channel_to(server.grpc) as stub:
            await stub.ModelInfer(request_for("m", ONES), timeout=10)
        assert psutil.Process(server.process.pid).children() == [], "Envoy is its pid"
        if end == "quits":
            (folder,) = temporary.iterdir()
            await Admin(str(folder / "admin")).quit()
        else:
            os.kill(server.process.pid, signal.SIGKILL)
        assert await asyncio.to_thread(server.process.wait, 40) == code
    if end == "quits":  # in order: the engine too, and with nothing left behind
        events = [json.loads(line)["event"] for line in log.read_text().splitlines()]
        assert events.index("drained") < events.index("Envoy ended by itself")
        assert list(temporary.iterdir()) == []


def threads_of(pid: int, prefix: str) -> set[tuple[float, int]]:
    """The slice and the policy of each of its threads that are called so."""
    return {
        (round(slices.given(int(task.name)), 6), os.sched_getscheduler(int(task.name)))
        for task in Path(f"/proc/{pid}/task").iterdir()
        if (task / "comm").read_text().startswith(prefix)
    }


@needs_slices
async def test_envoys_threads_have_long_slices_and_the_loops_its_own(store, tmp_path):
    """All of them SCHED_OTHER: one of SCHED_BATCH pushes no stranger aside, and would
    wait for the end of a stranger's turn six times a request."""
    long = rank.SLICE_S, os.SCHED_OTHER
    usual = round(slices.given(), 6), os.SCHED_OTHER
    async with serving(str(store), tmp_path / "log", "--frontend", "envoy") as server:
        assert threads_of(server.process.pid, "wrk") == {long}
        # pyvoy's thread and the loop's have no names of their own.
        assert {long, usual} <= threads_of(server.process.pid, "envoy")


async def test_a_second_signal_ends_it_at_once(store, tmp_path):
    async with serving(str(store), tmp_path / "log", "--frontend", "envoy") as server:
        # Both are there when it wakes up: no drain is as fast as that.
        for number in (signal.SIGSTOP, signal.SIGTERM, signal.SIGINT, signal.SIGCONT):
            server.process.send_signal(number)
        code = await asyncio.to_thread(server.process.wait, 10)
    assert code in (128 + signal.SIGTERM, 128 + signal.SIGINT)


@pytest.mark.parametrize("code", [0, 70])
def test_the_exit_code_is_the_programs(tmp_path, code):
    """70: the device is lost (runtime/compose.py); Envoy's own would be 0."""
    envoy = EnvoyProcess(tmp_path).started()
    envoy.ask("quit", code)
    assert envoy.process.wait(20) == code


async def test_a_killed_server_frees_its_port_at_once(store, tmp_path):
    async with serving(str(store), tmp_path / "1", "--frontend", "envoy") as server:
        port = server.grpc.rpartition(":")[2]
        assert server.stop(signal.SIGKILL) == -signal.SIGKILL
    flags = ("--frontend", "envoy", "--grpc-port", port)
    async with serving(str(store), tmp_path / "2", *flags) as server:
        async with grpc.aio.insecure_channel(server.grpc) as channel:
            stub = rpc.GRPCInferenceServiceStub(channel)
            response = await stub.ModelInfer(request_for("m", ONES), timeout=30)
        assert response.model_name == "m"


def test_settings_keep_their_way_through_memory(monkeypatch):
    run = Run({"budget": "1GiB"}, None, "/nowhere", {"PYTHONPATH": "x"}, "/bin/py")
    environ = dict.fromkeys(PYTHON, "of Envoy")
    hand_over(run, environ)
    assert "1GiB" not in json.dumps(environ)
    monkeypatch.setattr(sys, "executable", sys.executable)
    monkeypatch.setattr(sys, "argv", sys.argv)
    assert taken_over(environ) == run
    assert environ == {"PYTHONPATH": "x"}
    assert VARIABLE not in environ


def test_settings_of_envoy_are_settings():
    settings = Settings(frontend="envoy", envoy_config="edge.yaml")
    assert (settings.frontend, settings.envoy_config) == ("envoy", "edge.yaml")
