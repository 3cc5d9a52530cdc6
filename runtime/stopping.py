"""Being told to stop, in a process of our own (inside Envoy: runtime/envoy/signals.py).

Owns: SIGTERM and SIGINT while somebody waits for them. Must not: stop anything.
"""

import asyncio
import signal


async def told_to_stop() -> None:
    """Return at the first SIGTERM or SIGINT; the next one is the system's."""
    loop, told = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.set)
    try:
        await told.wait()
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
