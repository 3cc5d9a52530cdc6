"""Servers as processes of their own: started, found, charged for their CPU, ended.

Owns: the processes it started, by pid, and their logs. Must not: import what they run.
A server says where it listens in a line of JSON with `"event": "serving"`.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

START_S = 60.0
"""Importing torch on a busy machine; a healthy start takes 4."""

STOP_S = 20.0
TICK_S = 1.0 / os.sysconf("SC_CLK_TCK")
ROOT = Path(__file__).parent.parent


class ServerFailed(Exception):
    """A server did not come up; says what it logged last."""


class Server:
    """One running server. `grpc` and `http` are where it listens."""

    def __init__(self, name: str, process: "subprocess.Popen[bytes]", log: Path):
        self.name = name
        self.log = log
        self._process = process
        self.grpc = ""
        self.http = ""

    def __repr__(self) -> str:
        return (
            f"<{self.name}, pid {self._process.pid}, on {self.grpc or 'no port yet'}>"
        )

    def wait_ready(self) -> None:
        """Until it has told its address."""
        until = time.monotonic() + START_S
        while not self._told():
            if self._process.poll() is not None or time.monotonic() > until:
                raise ServerFailed(f"{self!r} did not start: {self._last_words()}")
            time.sleep(0.05)

    def cpu_seconds(self) -> float:
        """CPU time it has used so far, user and system, all threads."""
        # The command's name comes first, in brackets, and may hold spaces.
        stat = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2]
        fields = stat.split()
        return (int(fields[11]) + int(fields[12])) * TICK_S

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def stop(self) -> int:
        """SIGTERM, and SIGKILL for one that does not listen. Its exit code."""
        if self._process.poll() is None:
            self._process.terminate()
        try:
            return self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def _told(self) -> bool:
        for line in self.log.read_text().splitlines():
            if '"serving"' not in line:
                continue
            said = json.loads(line)
            if said.get("event") == "serving":
                self.grpc, self.http = said["grpc"], said.get("http", "")
                return True
        return False

    def _last_words(self) -> str:
        return " | ".join(self.log.read_text().splitlines()[-5:])


@contextmanager
def servers(
    commands: Sequence[tuple[str, Sequence[str]]], folder: Path
) -> Iterator[list[Server]]:
    """Start `python -m COMMAND` for each (name, command), all at once; ready inside."""
    started: list[Server] = []
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    try:
        for name, command in commands:
            log = folder / f"{name}.log"
            with log.open("wb") as out:
                process = subprocess.Popen(
                    [sys.executable, "-m", *command],
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    env=environ,
                    process_group=0,  # Ctrl-C is for the bench, which then ends them
                )
            started.append(Server(name, process, log))
        for server in started:
            server.wait_ready()
        yield started
    finally:
        for server in started:
            server.stop()


def hotset(store: Path, *flags: str) -> list[str]:
    """`hotset serve` as a user starts it, on free ports."""
    return [
        *("runtime", "serve", "--store", str(store), "--device", "cpu"),
        *("--grpc-port", "0", "--http-port", "0", "--log-format", "json", *flags),
    ]
