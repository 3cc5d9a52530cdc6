"""The parent's side of the traffic: starts its process, reads how far it is.

Owns: that process (by its pid) and the look at the server while the stream runs. Must
not: send requests or judge answers.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from runtime.demo.errors import DemoFailed
from runtime.demo.server import Server, end, tail

LOOK_EVERY_S = 0.4


@dataclass(frozen=True, slots=True)
class Sight:
    """How things stand while the stream runs."""

    done: int
    failed: int
    held: int
    capacity: int


@dataclass(slots=True)
class Sent:
    """A stream that has been sent. `most_held`: the most bytes any look found."""

    most_held: int = 0
    failures: list[str] = field(default_factory=list)


def sending(
    directory: Path, server: Server, concurrency: int, seen: Callable[[Sight], None]
) -> Sent:
    """Send the stream laid down in `directory`; its answers lie there afterwards."""
    command = [sys.executable, "-m", "runtime.demo.traffic"]
    command += ["--directory", str(directory), "--target", server.grpc]
    command += ["--concurrency", str(concurrency)]
    complaints = directory / "traffic.log"
    with ExitStack() as stack:
        errors = stack.enter_context(complaints.open("wb"))
        process = stack.enter_context(
            subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=errors,
                stdin=subprocess.DEVNULL,
                text=True,
                process_group=0,
            )
        )
        stack.callback(end, process)
        sent = follow(process, server, seen)
        code = process.wait()
    if code != 0:
        raise DemoFailed(
            f"the traffic process ended with code {code}:\n{tail(complaints)}"
        )
    return sent


def follow(
    process: "subprocess.Popen[str]", server: Server, seen: Callable[[Sight], None]
) -> Sent:
    """Read the process's lines to their end, looking at the server meanwhile."""
    sent = Sent()
    looked, status = 0.0, server.status()
    assert process.stdout is not None, "started with a pipe. This is a bug."
    for line in process.stdout:
        said = json.loads(line)
        if "failure" in said:
            sent.failures.append(said["failure"])
            continue
        now = time.monotonic()
        if now - looked >= LOOK_EVERY_S:
            looked, status = now, server.status()
            sent.most_held = max(sent.most_held, status.held)
        seen(Sight(said["done"], said["failed"], status.held, status.capacity))
    return sent
