"""SIGTERM and SIGINT inside Envoy: ours, and not Envoy's.

Owns: taking them. Must not: decide what the first one leads to.

Python's own handlers run in the main thread, which is Envoy's. So they are blocked
before the process becomes Envoy (runtime/envoy/launch.py), and a thread waits for them.
"""

import asyncio
import os
import signal
import threading
from collections.abc import Callable

STOP = frozenset({signal.SIGTERM, signal.SIGINT})


def listen(loop: asyncio.AbstractEventLoop, first: Callable[[], None]) -> None:
    """Call `first` on `loop` at the first one; the second ends the process at once."""

    def wait() -> None:
        signal.sigwait(STOP)
        loop.call_soon_threadsafe(first)
        os._exit(128 + signal.sigwait(STOP))

    threading.Thread(target=wait, name="signals", daemon=True).start()
