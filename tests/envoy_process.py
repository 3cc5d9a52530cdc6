"""A real Envoy with a fake engine in it, as tests of the wire use it.

Owns: the process, and the engine's stand-in on this side. Its inside is
tests/envoy_app.py.
"""

import asyncio
import contextlib
import json
import os
import pickle
import socket
import subprocess
import sys
import time
from pathlib import Path

from runtime.envoy.bootstrap import APPLICATION, bootstrap
from runtime.limits import Options
from tests.envoy_app import SOCKET, pickled
from tests.server_process import ROOT

START_S = 60

LAUNCH = """
import sys
from runtime.config import Settings
from runtime.envoy.launch import launch
launch(Settings(store="memory://", envoy_config=sys.argv[1], grace=10), {}, None)
"""


class EnvoyProcess:
    """One Envoy; `address` is known once it has `started`."""

    def __init__(self, folder: Path) -> None:
        self._socket = str(folder / "control")
        self.log = folder / "log"
        config = folder / "envoy.json"
        built = json.dumps(bootstrap("127.0.0.1", 0, 0))
        config.write_text(built.replace(APPLICATION, "tests.envoy_app:app"))
        environ = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            SOCKET: self._socket,
        }
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-c", LAUNCH, str(config)],
                stdout=out,
                stderr=subprocess.STDOUT,
                env=environ,
                cwd=ROOT,
            )
        self.address = ""

    def started(self) -> "EnvoyProcess":
        end, told = time.monotonic() + START_S, Path(self._socket + ".address")
        while not self.address:
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.02)
            with contextlib.suppress(OSError):
                self.address = told.read_text().strip()
        return self

    def ask(self, name: str, *args):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
            line.connect(self._socket)
            line.sendall(pickled((name, args)))
            line.shutdown(socket.SHUT_WR)
            with line.makefile("rb") as file:
                return pickle.load(file)

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def end(self) -> int:
        if self.alive:
            self.process.terminate()
        try:
            return self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


class RemoteErrors(dict):
    """`engine.errors`, told to the other side at each change."""

    def __init__(self, envoy: EnvoyProcess) -> None:
        self._envoy = envoy

    def __setitem__(self, model: str, error: Exception) -> None:
        super().__setitem__(model, error)
        self._envoy.ask("put", "errors", dict(self))

    def clear(self) -> None:
        super().clear()
        self._envoy.ask("put", "errors", {})


class RemoteHold:
    def __init__(self, envoy: EnvoyProcess) -> None:
        self._envoy = envoy

    def clear(self) -> None:
        self._envoy.ask("hold", False)

    def set(self) -> None:
        self._envoy.ask("hold", True)


class RemoteEngine:
    """Looks like tests.fake_engine.FakeEngine; it is in another process."""

    def __init__(self, envoy: EnvoyProcess) -> None:
        self.__dict__["envoy"] = envoy
        self.__dict__["errors"] = RemoteErrors(envoy)
        self.__dict__["hold"] = RemoteHold(envoy)
        self.__dict__["last"] = {}

    def __getattr__(self, name: str):
        if name in self.last:
            return self.last[name]
        return self.envoy.ask("get", name)

    def __setattr__(self, name: str, value) -> None:
        self.envoy.ask("put", name, value)

    async def until(self, happened) -> None:
        while not happened():  # noqa: ASYNC110 - it happens in another process
            await asyncio.sleep(0.01)

    def look_again(self) -> None:
        """It looks all the time."""


class EnvoyServing:
    """Looks like runtime.server.Serving."""

    def __init__(self, engine: RemoteEngine) -> None:
        self._engine = engine
        self._envoy = engine.envoy
        self._stopping = None
        self.address = self._envoy.address
        self.port = int(self.address.rpartition(":")[2])

    @property
    def ends(self) -> list:
        return self._envoy.ask("told")

    async def __aenter__(self) -> "EnvoyServing":
        return self

    async def __aexit__(self, *_) -> None:
        """The Envoy is used again by the next test."""

    async def stop(self, grace: float | None = None) -> None:
        if self._stopping is None:
            stop = asyncio.to_thread(self._stop, grace)
            self._stopping = asyncio.ensure_future(stop)
        await asyncio.shield(self._stopping)

    def _stop(self, grace: float | None) -> None:
        self._engine.last.update(self._envoy.ask("stop", grace))
        self._envoy.ask("quit")
        assert self._envoy.process.wait(20) == 0, self._envoy.log.read_text()


class Envoys:
    """Those that are up. A test that stops one takes it away."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started = 0
        self._idle: EnvoyProcess | None = None

    def take(self) -> EnvoyProcess:
        envoy, self._idle = self._idle, None
        if envoy is None or not envoy.alive:
            self._started += 1
            folder = self._folder / str(self._started)
            folder.mkdir()
            envoy = EnvoyProcess(folder).started()
        return envoy

    def give_back(self, envoy: EnvoyProcess) -> None:
        if envoy.alive:
            envoy.ask("finish")
            self._idle = envoy

    def end(self) -> None:
        if self._idle is not None:
            assert self._idle.end() == 0, self._idle.log.read_text()


def begin(engine: RemoteEngine, options: Options, is_apart: bool) -> EnvoyServing:
    engine.envoy.ask("begin", options, is_apart)
    return EnvoyServing(engine)
