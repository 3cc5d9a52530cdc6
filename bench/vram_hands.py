"""The processes of `bench.vram`, from outside: started, asked, and given up on.

Owns: their lives, and how long anybody is waited for. Must not: know what a row means.
"""

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

from bench.vram_worker import Job

STARTS_S = 90.0
"""The first import of torch from a cold disk, by all of them at once."""
ANSWERS_S = 30.0
ENDS_S = 5.0

Row = Mapping[str, object]


class Lost(Exception):
    """A worker that ended or did not answer; says which, and its last words."""


class Hand:
    """A worker."""

    def __init__(self, process: asyncio.subprocess.Process, heard: Path) -> None:
        self._process = process
        self._heard = heard

    async def made(self, names: Sequence[str]) -> dict[str, str]:
        """Returns when all is made that can be: why the rest is not. Raises Lost."""
        rows = [await self._row(STARTS_S) for _ in names]
        return {str(r["name"]): str(r["failed"]) for r in rows if "failed" in r}

    async def asked(self, do: str, name: str, size: int) -> Row:
        """What came of an order. Raises Lost."""
        assert self._process.stdin is not None
        order = json.dumps({"do": do, "name": name, "size": size})
        with contextlib.suppress(ConnectionError):  # then it ends, and that is read
            self._process.stdin.write(order.encode() + b"\n")
            await self._process.stdin.drain()
        return await self._row(ANSWERS_S)

    async def end(self, patience: float = ENDS_S) -> None:
        """Let it go, or make it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._process.wait(), patience)
        if self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    async def _row(self, patience: float) -> Row:
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(patience):
                while line := await self._process.stdout.readline():
                    if line.startswith(b"ROW "):
                        row: Row = json.loads(line[4:])
                        return row
        except TimeoutError:
            await self.end(patience=0.1)
            raise Lost(f"no answer in {patience:g} s; {self._said()}") from None
        code = await self._process.wait()
        raise Lost(f"ended with status {code}; {self._said()}")

    def _said(self) -> str:
        lines = self._heard.read_text(errors="replace").split("\n")
        said = [line.strip() for line in lines if line.strip()]
        return f"last words: {said[-1][:200]}" if said else "it said nothing"


async def begun(job: Job, folder: Path) -> Hand:
    """A worker, started. `folder`: for what it says on standard error."""
    heard = folder / f"{job.names[0]}.stderr"
    with heard.open("wb") as errors:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "bench.vram_worker",
            json.dumps(asdict(job)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
            cwd=Path(__file__).parent.parent,
            env={**os.environ, **runtime_by_name(folder)},
        )
    return Hand(process, heard)


def runtime_by_name(folder: Path) -> dict[str, str]:
    """Where `libcudart.so` is. fastsafetensors opens the library by that name, which
    torch's own packages do not have; this is a link to the one that torch loads."""
    spec = find_spec("nvidia")
    bases = (spec.submodule_search_locations if spec else None) or []
    found = [lib for b in bases for lib in Path(b).glob("*/lib/libcudart.so.*")]
    if not found:
        return {}
    place = folder / "lib"
    place.mkdir(exist_ok=True)
    with contextlib.suppress(FileExistsError):
        (place / "libcudart.so").symlink_to(max(found))
    before = os.environ.get("LD_LIBRARY_PATH", "")
    return {"LD_LIBRARY_PATH": f"{place}:{before}" if before else str(place)}
