"""Contenders as running servers: started, asked for a first right answer, stopped.

Owns: the processes it started and their logs. Must not: measure, or know a contender.
"""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import grpc

from bench.peers import loopback, venvs
from bench.peers.contender import Contender, Site, Unavailable
from bench.peers.tree import Tree
from bench.traffic import METHOD

START_S = 120.0
"""Until the first right answer. The slowest here takes 17 on a busy machine."""

ANSWER_S = 10.0
POLL_S = 0.2
ROOT = Path(__file__).parent.parent.parent

Right = Callable[[bytes], bool]
"""True if these bytes are the right answer to what was asked."""


class Running:
    """One server. `address` is where its gRPC is."""

    def __init__(self, contender: Contender, site: Site, cores: str) -> None:
        self.contender = contender
        self.name = contender.name
        self.address = f"127.0.0.1:{site.grpc_port}"
        self._log = site.folder / "log"
        pinned = ("taskset", "-c", cores) if cores else ()
        environ = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            **contender.environ(site),
        }
        environ = {name: value for name, value in environ.items() if value}
        command = [*pinned, *contender.command(site)]
        with self._log.open("wb") as out:
            self.tree = Tree(
                subprocess.Popen(
                    command,
                    cwd=site.folder,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    env=environ,
                    # Ctrl-C is for the bench, which then ends them, by session.
                    start_new_session=True,
                )
            )
        self._channel = grpc.insecure_channel(
            self.address,
            options=(("grpc.enable_http_proxy", 0),),
        )

    def __repr__(self) -> str:
        return f"<{self.name} on {self.address}>"

    def ask(self, request: bytes, model: str) -> bytes:
        """One call; raises grpc.RpcError."""
        method: grpc.UnaryUnaryMultiCallable[bytes, bytes]
        method = self._channel.unary_unary(METHOD)
        metadata = tuple(self.contender.metadata(model))
        answer: bytes = method(request, timeout=ANSWER_S, metadata=metadata)
        return answer

    def wait_right(self, request: bytes, model: str, right: Right) -> None:
        """Until it has given the right answer once. Raises Unavailable."""
        until = time.monotonic() + START_S
        heard = "no answer"
        while time.monotonic() < until and not self.tree.ended:
            try:
                if right(self.ask(request, model)):
                    return
                heard = "a wrong answer"
            except grpc.RpcError as error:
                code = getattr(error, "code", None)
                heard = str(code() if code else error)
            time.sleep(POLL_S)
        raise Unavailable(f"it did not come up ({heard}): {self._last_words()}")

    def stop(self) -> None:
        """End it, and all that it has started."""
        self._channel.close()
        self.tree.stop()

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").splitlines()
        return " | ".join(line.strip() for line in lines[-4:])[-400:]


def why_not(contender: Contender, makes_venvs: bool) -> str:
    """Why it cannot run here; empty if it can."""
    if contender.venv is not None and not venvs.is_made(contender.venv):
        if not makes_venvs:
            return "its environment is not made yet; a full run makes it"
        try:
            venvs.make(contender.venv)
        except Unavailable as error:
            return str(error)
    if contender.everywhere and loopback.missing():
        return loopback.missing()
    return contender.missing()


def begin(
    contenders: Sequence[Contender],
    folder: Path,
    models: Callable[[Contender], Path],
    cores: str,
    stack: ExitStack,
) -> list[Running]:
    """Start all of them at once; each is stopped when the stack is left."""
    started = []
    for contender in contenders:
        own = folder / contender.name
        own.mkdir(parents=True)
        site = Site(
            folder=own,
            python=venvs.python(contender.venv),
            models=models(contender),
            grpc_port=free_port(),
            http_port=free_port(),
        )
        running = Running(contender, site, cores)
        stack.callback(running.stop)
        started.append(running)
    return started


def can_pin() -> bool:
    """True if there is a `taskset`."""
    return shutil.which("taskset") is not None


def free_port() -> int:
    """One that nobody listens on. (Somebody could take it before we do; then the server
    says so and is left out.)"""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
