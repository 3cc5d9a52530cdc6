"""The process that compiles: `python -m loader.compile_worker JOB_FOLDER CACHE_FOLDER`.

Owns: its own limits, the key of what it makes, the order compile - try - keep. Must
not: be imported by the server. It is a process of its own so that a compiler that
hangs, eats memory or crashes costs a request nothing, and so that new machine code runs
here first. It has no credentials (runtime/compile_process.py chooses its environment),
and the lowest priority there is.
"""

import ctypes
import hashlib
import json
import os
import platform
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from loader.code_cache import CodeCache, Entry, NotOurs
from loader.compile_graph import OPTIONS, NotCompiled, compile_graph
from loader.compile_job import (
    GRAPH,
    JobInput,
    Result,
    read_inputs,
    read_onednn_from,
    read_weights,
    write_result,
)
from loader.compile_trial import SEED, Disagrees, prove, values
from loader.compiled import Compiled, Library
from loader.errors import ArtifactRefused
from loader.graph import Graph, read_graph
from loader.linear import prefer_onednn
from loader.onednn import open_onednn

FORMAT = 1
"""Of what we make of a graph; another number, another key."""

MEMORY = 8 << 30
"""Bytes of data a process, ours or the compiler's, may have: MiniLM's took 1.5 GiB."""
CPU_S = 900
FILE = 4 << 30
PR_SET_PDEATHSIG = 1
ROWS = 4
LENGTHS = (7, 67)
"""What it is exported with. Convolutions over a free size may need more than 7."""


def main(arguments: Sequence[str]) -> int:
    """Do the job; whatever becomes of it is in the result."""
    folder, cache = Path(arguments[0]), Path(arguments[1])
    limit()
    torch.set_num_threads(1)
    try:
        result = work(folder, CodeCache(cache))
    except (NotCompiled, Disagrees, NotOurs, ArtifactRefused) as error:
        result = Result(reason=" ".join(str(error).split()))
    except Exception as error:  # noqa: BLE001 - torch raises what it likes
        print(repr(error), file=sys.stderr)  # noqa: T201 - the job's own log
        result = Result(reason=f"the compiler failed: {type(error).__name__}")
    write_result(folder, result)
    return 0


def limit() -> None:
    """Stand behind everybody else, and end with whoever started us."""
    for kind, most in (
        (resource.RLIMIT_DATA, MEMORY),
        (resource.RLIMIT_CPU, CPU_S),
        (resource.RLIMIT_FSIZE, FILE),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(kind)
        least = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (least, least))
    os.nice(19)
    if sys.platform == "linux":
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        # Where memory runs out, this goes before a server does.
        Path("/proc/self/oom_score_adj").write_text("1000")


def work(folder: Path, cache: CodeCache) -> Result:
    """Compile unless it was, try, keep."""
    inputs = read_inputs(folder)
    graph = read_graph((folder / GRAPH).read_bytes(), torch.device("cpu"))
    prefer_onednn(graph, open_onednn(read_onednn_from(folder)))
    weights = read_weights(folder, graph.weights)
    key = key_of(graph, inputs)
    entry = cache.find(key)
    if entry is not None:
        return Result(key, "", _tried(graph, weights, inputs, entry), True)
    made = folder / "made"
    made.mkdir()
    shown = examples(graph, weights, inputs)
    library = compile_graph(graph, weights, shown, inputs, made)
    found = Entry(library.path, library.terms)
    speedup = _tried(graph, weights, inputs, found)
    cache.put(key, library.path.read_bytes(), library.terms)
    return Result(key, "", speedup, False)


def _tried(
    graph: Graph,
    weights: Sequence[torch.Tensor],
    inputs: Sequence[JobInput],
    entry: Entry,
) -> float:
    code = Library(entry.library, len(weights), entry.terms, 1)
    compiled = Compiled(graph.eager, code, len(weights), entry.terms)
    return prove(compiled, graph.eager, weights, inputs, entry.terms)


def examples(
    graph: Graph, weights: Sequence[torch.Tensor], inputs: Sequence[JobInput]
) -> tuple[torch.Tensor, ...]:
    """Inputs to export with, such as the graph takes; no free size of them is 1."""
    for length in LENGTHS:
        draw = torch.Generator().manual_seed(SEED)
        found = tuple(values(item, [*_sizes(item, length)], draw) for item in inputs)
        try:
            with torch.inference_mode():
                graph.eager(*weights, *found)
        except Exception:  # noqa: BLE001 - too small for it: try larger ones
            continue
        return found
    raise NotCompiled("no example could be made up that the graph itself takes")


def _sizes(item: JobInput, length: int) -> Iterator[int]:
    for dim, (size, most) in enumerate(zip(item.shape, item.most, strict=True)):
        wanted = length if dim else ROWS
        bounded = wanted if most == -1 else max(2, min(wanted, most))
        yield bounded if size == -1 else size


def key_of(graph: Graph, inputs: Sequence[JobInput]) -> str:
    """Everything that the library depends on."""
    told = [
        *(FORMAT, graph.digest, repr(inputs), repr(sorted(OPTIONS.items()))),
        *(torch.__version__, str(torch.version.git_version), platform.machine()),
        *(torch.backends.cpu.get_cpu_capability(), _processor(), _compiler()),
    ]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def _processor() -> str:
    """What the processor can do: the compiler uses all of it."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    return next((line for line in text.splitlines() if line.startswith("flags")), "")


def _compiler() -> str:
    """The C++ compiler's version. NotCompiled if there is none."""
    name = shutil.which(os.environ.get("CXX") or "g++") or shutil.which("clang++")
    if name is None:
        raise NotCompiled("there is no C++ compiler here: install g++, or set CXX")
    asked = subprocess.run(
        [name, "--version"], capture_output=True, text=True, check=False
    )
    return asked.stdout.partition("\n")[0]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
