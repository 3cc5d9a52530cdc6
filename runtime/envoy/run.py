"""What the process knows before it becomes Envoy, for what it is afterwards.

Owns: that hand-over: a file that exists only in memory, found by a variable. Must not:
write to a disk or a command line: settings may hold credentials.
"""

import json
import os
import sys
from collections.abc import Mapping, MutableMapping
from dataclasses import asdict, dataclass

VARIABLE = "_HOTSET_RUN"

PYTHON = ("PYTHONPATH", "PYTHONHOME", "LD_PRELOAD")
"""Variables that start Python inside Envoy, and would harm what we start ourselves."""


@dataclass(frozen=True, slots=True)
class Run:
    """`flags` and `config`: what `serve` was given, from which the settings are read
    anew. `folder`: ours alone, with Envoy's admin socket. `environ`: PYTHON as it was.
    `python`: the interpreter. `control`: the descriptor by which a supervisor speaks to
    this process (runtime/tree/), if it is one's child."""

    flags: Mapping[str, str | bool]
    config: str | None
    folder: str
    environ: Mapping[str, str]
    python: str
    control: int | None = None


def hand_over(run: Run, environ: MutableMapping[str, str]) -> None:
    """Keep `run` for whoever this process becomes; `environ` will be its."""
    file = os.memfd_create("hotset", 0)
    os.write(file, json.dumps(asdict(run)).encode())
    environ[VARIABLE] = str(file)


def taken_over(environ: MutableMapping[str, str] = os.environ) -> Run:
    """What was handed over; once. Makes this process look like Python again."""
    file = int(environ.pop(VARIABLE))
    with os.fdopen(file, "rb") as memory:
        memory.seek(0)
        run = Run(**json.load(memory))
    for name in PYTHON:
        environ.pop(name, None)
    environ.update(run.environ)
    sys.executable = run.python
    sys.argv = ["hotset"]
    return run
