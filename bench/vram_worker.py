"""Loaders of `bench.vram` in a process of their own: orders on stdin, rows on stdout.

Owns: doing one order at a time, the check that the right bytes came, and saying what
went wrong. Must not: choose whose turn it is.

A process for each library: some bind the thread to a node, some leave threads behind,
and one that crashes or hangs ends only itself. Only one of them works at a time.
"""

import gc
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.load_models import name_of
from bench.load_peers import Hotset, Load, Target
from bench.load_worker import TOLD, differing, digests, measured, release, say
from bench.vram_peers import CEILING, Ceiling, makers

WARM_UP, RUN = "warm up", "run"


@dataclass(frozen=True, slots=True)
class Job:
    """Who works here, and where the models are."""

    names: Sequence[str]
    folder: str
    device: str


def work(job: Job) -> None:
    """Say who could be made, then do what stdin orders until it ends."""
    torch.set_num_threads(1)
    device = torch.device(job.device)
    torch.zeros(1, device=device)  # the device's own start belongs to nobody's load
    known, loaders = makers(job.folder, device), {}
    for name in job.names:
        try:
            loaders[name] = known[name]()
            say(name=name)
        except Exception as error:  # noqa: BLE001 - whatever a library fails with
            say(name=name, failed=told(error))
    gc.collect()
    gc.freeze()  # what is there by now need not be looked at before each load
    for line in sys.stdin:
        order = json.loads(line)
        name, size = order["name"], order["size"]
        target = Target(Path(job.folder) / name_of(size) / "1", job.folder)
        do = warm_up if order["do"] == WARM_UP else run
        try:
            say(name=name, size=size, **do(name, loaders[name], target, device))
        except Exception as error:  # noqa: BLE001 - as above
            say(name=name, size=size, failed=told(error))


def warm_up(
    name: str, load: Load, target: Target, device: torch.device
) -> Mapping[str, object]:
    """The first load, which does not count: it must give the right bytes."""
    tensors = load(target)
    wrong = [] if name == CEILING else differing(tensors, digests(target.local))
    del tensors
    release(load)
    return {"failed": f"wrong bytes in {wrong[0]}"} if wrong else {}


def run(
    name: str, load: Load, target: Target, device: torch.device
) -> Mapping[str, object]:
    """A load that counts. The ceiling is the quicker of two clocks, against us."""
    row = measured(name, load, target, None, device)
    del row["name"]
    if isinstance(load, Ceiling) and load.seconds is not None:
        row["seconds"] = min(load.seconds, float(str(row["seconds"])))
    if isinstance(load, Hotset) and load.tier == "host":
        row["seconds"] = load.seconds  # no peer's; a server's loop runs already
    return row


def told(error: Exception) -> str:
    """In a line."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:TOLD]


if __name__ == "__main__":
    work(Job(**json.loads(sys.argv[1])))
    sys.stdout.flush()
    os._exit(0)  # a library's threads may abort when the interpreter goes before them
