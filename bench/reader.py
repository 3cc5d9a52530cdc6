"""A stranger that reads and hashes files as loads do, and does nothing else.

Owns: what the bytes of loads alone cost those who answer meanwhile. Must not: know an
engine. It stands back and keeps off a core as a porter does, and reads from the page
cache into memory that it has touched before.

    python -m bench.reader FILE ...     told on its input for how many seconds it is to
                                        read, says on its output how many files it did
"""

import asyncio
import contextlib
import os
import random
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

from blake3 import blake3

from loader.cores import leave_a_core
from loader.threads import stand_back

STEP = 1 << 20
"""Bytes that are read and then hashed, as in runtime/porter/work.py."""

Read = Callable[[float], Awaitable[int]]
"""Have it read for so many seconds; gives the files that it has read."""


@contextlib.asynccontextmanager
async def reader(files: Sequence[Path]) -> AsyncIterator[Read]:
    """The stranger, until the block ends."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.reader", *map(str, files)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parent.parent,
    )
    told, said = process.stdin, process.stdout
    assert told is not None
    assert said is not None

    async def read(seconds: float) -> int:
        told.write(f"{seconds}\n".encode())
        await told.drain()
        return int(await said.readline())

    try:
        await read(0.0)  # it is up, and has read a file
        yield read
    finally:
        told.close()  # which ends it
        await process.wait()


def main(files: Sequence[str]) -> None:
    """Read when told to, until nobody is there to tell."""
    stand_back()
    leave_a_core()
    chance = random.Random(1)
    into = memoryview(bytearray(max(Path(file).stat().st_size for file in files)))
    for line in sys.stdin:
        until, count = time.monotonic() + float(line), 0
        while not count or time.monotonic() < until:
            hashed(chance.choice(files), into)
            count += 1
        print(count, flush=True)


def hashed(file: str, into: memoryview) -> str:
    """Its digest; its bytes are in `into`, which has room for them."""
    digest, at = blake3(), 0
    fd = os.open(file, os.O_RDONLY)
    try:
        while got := os.preadv(fd, [into[at : at + STEP]], at):
            digest.update(into[at : at + got])
            at += got
    finally:
        os.close(fd)
    return digest.hexdigest()


if __name__ == "__main__":
    main(sys.argv[1:])
