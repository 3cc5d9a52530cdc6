"""One source of `bench.load`, in a process of its own: rows of JSON on stdout.

Owns: the turns (A B C, C B A, ...), the clock, the process's CPU time, the check that
everybody got the right bytes. Must not: start servers or judge figures.

A process for each source, because some libraries read their environment only once and
some leave threads behind. A library that is missing or fails is a row as well.
"""

import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from blake3 import blake3
from safetensors import safe_open

from bench.load_peers import (
    CPU,
    REFERENCES,
    Hotset,
    Load,
    Target,
    Tensors,
    local_loaders,
    s3_loaders,
)
from bench.proxy import Counter

TOLD = 200
"""Characters of a library's error that are worth showing."""


@dataclass(frozen=True, slots=True)
class Task:
    """What a worker is to do. `rounds`: by MB. `counter`: a proxy's endpoint, or ''."""

    source: str
    folder: str
    store: str
    rounds: Mapping[str, int]
    skip: Sequence[str]
    counter: str


def run(task: Task) -> None:
    """All sizes, all loaders; one warm-up each, which is checked and may fail."""
    torch.set_num_threads(1)
    made: dict[str, Load] = {}
    counter = Counter(task.counter) if task.counter else None
    for size, rounds in sorted(task.rounds.items(), key=lambda item: int(item[0])):
        directory = Path(task.folder) / f"mb-{int(size):04d}" / "1"
        target = Target(directory, task.store)
        right = digests(target.local)
        loaders = {
            name: load
            for name, load in prepared(task, made).items()
            if warmed(task, name, load, target, right)
        }
        if counter:
            counter.taken()
        # What is there by now need not be looked at before each load: that emptied the
        # caches of the core, and what came next was that (a load of 4 MB took twice as
        # long). A server does the same (runtime/collector.py).
        gc.collect()
        gc.freeze()
        for number in range(rounds):
            turn = list(loaders) if number % 2 == 0 else list(reversed(loaders))
            for name in turn:
                say(size=int(size), **measured(name, loaders[name], target, counter))


def prepared(task: Task, made: dict[str, Load]) -> dict[str, Load]:
    """Every loader that can be made here; those that cannot are told once."""
    makers = (s3_loaders if task.store.startswith("s3:") else local_loaders)(task.store)
    for name, maker in makers.items():
        if name in made or name in task.skip:
            continue
        try:
            made[name] = maker()
        except ImportError as error:
            say(name=name, missing=f"{error}"[:TOLD])
            made[name] = _absent
    return {name: load for name, load in made.items() if load is not _absent}


def _absent(target: Target) -> Tensors:
    raise AssertionError("This is a bug.")


def warmed(
    task: Task, name: str, load: Load, target: Target, right: Mapping[str, str]
) -> bool:
    """The first load, which does not count: it must give the right bytes."""
    try:
        tensors = load(target)
    except Exception as error:  # noqa: BLE001 - whatever a library fails with
        say(name=name, failed=f"{type(error).__name__}: {error}"[:TOLD])
        return False
    if name in REFERENCES:
        return True
    wrong = differing(tensors, right)
    del tensors
    release(load)
    if wrong:
        say(name=name, failed=f"wrong bytes in {wrong[0]}")
    return not wrong


def differing(tensors: Tensors, right: Mapping[str, str]) -> list[str]:
    """The names of those whose bytes are not the file's."""
    return [key for key, sha in right.items() if digest(tensors[key]) != sha]


def measured(
    name: str,
    load: Load,
    target: Target,
    counter: Counter | None,
    device: torch.device = CPU,
) -> dict[str, object]:
    """One load: seconds, CPU seconds of this process (and of a porter), requests. It
    ends when the device has done all that it was told."""
    gc.collect()
    cpu, began = spent_so_far(load), time.perf_counter()
    tensors = load(target)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds, spent = time.perf_counter() - began, spent_so_far(load) - cpu
    del tensors
    release(load)
    row: dict[str, object] = {"name": name, "seconds": seconds, "cpu": spent}
    if counter:
        passed = counter.taken()
        row["gets"] = sum(p.method in ("GET", "HEAD") for p in passed)
        row["connections"] = len({p.connection for p in passed})
    if isinstance(load, Hotset):
        row["phases"] = dict(load.phases)
    return row


def spent_so_far(load: Load) -> float:
    """CPU seconds, to the nanosecond for a porter as well."""
    spent = time.process_time()
    if isinstance(load, Hotset) and load.pid:
        for task in Path(f"/proc/{load.pid}/task").iterdir():
            spent += int((task / "schedstat").read_text().split()[0]) / 1e9
    return spent


def release(load: Load) -> None:
    """Give the bytes back, outside the clock; for the others `del` has done it."""
    if isinstance(load, Hotset):
        load.release()


def digests(path: str) -> dict[str, str]:
    """Every tensor of a file, by name."""
    with safe_open(path, "pt") as file:
        names = list(file.keys())  # a handle, no dict: it cannot be iterated
        return {name: digest(file.get_tensor(name)) for name in names}


def digest(tensor: torch.Tensor) -> str:
    """Of the bytes, whatever the dtype."""
    flat = tensor.cpu().contiguous().reshape(-1).view(torch.uint8)
    return blake3(flat.numpy().data, max_threads=blake3.AUTO).hexdigest()


def say(**row: object) -> None:
    """A row for the parent."""
    print("ROW " + json.dumps(row), flush=True)


def rows(task: Task, python: str, told: Callable[[dict[str, object]], None]) -> int:
    """For the parent: run a worker, tell each row as it comes; gives the exit code."""
    with subprocess.Popen(
        [python, "-m", "bench.load_worker", json.dumps(asdict(task))],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=Path(__file__).parent.parent,
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if line.startswith("ROW "):
                    told(json.loads(line[4:]))
        except BaseException:
            process.kill()
            raise
        return process.wait()


if __name__ == "__main__":
    run(Task(**json.loads(sys.argv[1])))
    sys.stdout.flush()
    os._exit(0)  # obstore's runtime may abort when the interpreter goes before it
