"""The worker process that compiles (loader/compile_worker.py), from outside.

Owns: its environment, its folder, its end. Must not: know which graph is worth it.

It is started with nothing of ours but paths: no credentials, no settings. Whatever it
does, it ends within `LONGEST_S`, and its folder is gone afterwards.
"""

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import structlog

import loader
from loader.compile_job import Result, read_result

log = structlog.get_logger()

LONGEST_S = 1800.0
"""A minute of a free core; at the lowest priority, on a busy machine, far more."""

PASSED = ("PATH", "LD_LIBRARY_PATH", "CXX", "CPATH", "LIBRARY_PATH", "LANG")
LAST_WORDS = 2000


def environment(
    folder: Path, environ: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """What the worker may know: how to find compiler and packages, and where to write.

    TORCHINDUCTOR_CACHE_DIR: torch's own cache holds pickles; a fresh one is nobody's.
    """
    passed = {name: environ[name] for name in PASSED if name in environ}
    return {
        **passed,
        "HOME": str(folder),
        "TMPDIR": str(folder),
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(loader.__file__).parents[1]),
    }


@contextlib.contextmanager
def job_folder() -> Iterator[Path]:
    """A folder of one job, closed to others, gone afterwards."""
    with tempfile.TemporaryDirectory(
        prefix="hotset-compile-", ignore_cleanup_errors=True
    ) as name:
        yield Path(name)


async def compiled_apart(folder: Path, cache: Path) -> Result:
    """Run the worker on the job in `folder`, to its end or ours. Never raises but for
    a cancellation, and then the worker is gone too."""
    with (folder / "log").open("wb") as said:
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "loader.compile_worker"),
                *(str(folder), str(cache)),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                cwd=folder,
                env=environment(folder),
                start_new_session=True,
            )
        except OSError as error:
            return Result(reason=f"the compiler did not start: {error.strerror}")
    try:
        code = await asyncio.wait_for(process.wait(), LONGEST_S)
    except TimeoutError:
        return Result(reason=f"compiling took longer than {LONGEST_S:g} s")
    finally:
        await _ended(process)
    result = read_result(folder)
    if code == 0 and result is not None:
        if result.reason:
            log.debug("compiler's last words", said=_last_words(folder))
        return result
    log.warning("the compiler died", code=code, said=_last_words(folder))
    return Result(reason=_death(code))


async def _ended(process: asyncio.subprocess.Process) -> None:
    """The worker and the compilers it started: a group of their own."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    while process.returncode is None:
        try:
            await process.wait()
        except asyncio.CancelledError:
            continue  # it was killed: it takes a moment, not longer


def _death(code: int) -> str:
    if code < 0:
        return f"compiling, or the compiled code, ended by {signal.Signals(-code).name}"
    return f"the compiler ended with code {code}"


def _last_words(folder: Path) -> str:
    try:
        return (folder / "log").read_text(errors="replace")[-LAST_WORDS:]
    except OSError:
        return ""
