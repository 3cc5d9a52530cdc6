"""A porter's process, from its first line to its last.

Owns: its rank and cores, its event loop and its end. Must not: know what it works on.
"""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Sequence

from loader.cores import leave_a_core
from loader.threads import stand_back
from runtime.porter.work import Work


async def _live(fd: int, spare: Sequence[int]) -> None:
    work = Work(socket.socket(fileno=fd), spare)
    await work.over
    await work.close()


def main(fd: int) -> None:
    """Until the engine is gone, or says so."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the engine ends it, when it has drained
    stand_back()  # before there are threads: each begins with this rank
    asyncio.run(_live(fd, leave_a_core()))
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(0)  # obstore's runtime may abort when the interpreter goes before it
