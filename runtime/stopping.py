"""How serving ends, as far as it is the same for every front end.

Owns: SIGTERM and SIGINT while somebody waits for them (inside Envoy they are
runtime/envoy/signals.py's), and the last waits. Must not: stop anything.
"""

import asyncio
import signal
from collections.abc import Callable

import structlog

from runtime.limits import LAST_WORDS_S, QUIET_S

_log = structlog.get_logger()


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


async def quiet(calls: Callable[[], int]) -> None:
    """Return once nobody calls any more, or after LAST_WORDS_S. `calls`: those that
    have ever come; new ones are refused meanwhile."""
    for _ in range(int(LAST_WORDS_S / QUIET_S)):
        before = calls()
        await asyncio.sleep(QUIET_S)
        if calls() == before:
            return


async def drained(drain: "asyncio.Future[None]") -> None:
    """The engine is empty, or has had its last words. Raises what `drain` does."""
    await asyncio.wait({drain}, timeout=LAST_WORDS_S)
    if not drain.done():
        _log.error("the engine did not drain, leaving all the same")
        drain.cancel()
        return
    drain.result()
