"""Work in threads that is always waited for.

Owns: how it is waited for, and how loading threads stand back. Must not: hide a
cancellation, nor let one outrun the thread.

Cancelling a coroutine does not stop the thread that works for it. If the caller went on
at once it would free memory the thread still writes to (trap 4 of runtime/cache.py).
anyio's to_thread takes the same stand (`abandon_on_cancel=False`).
"""

import asyncio
import contextlib
import os
import sys
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Executor
from typing import TypeVar, TypeVarTuple, Unpack

from loader import slices

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


NICE = 10
SLICE_S = 0.03
"""Most models of a few megabytes are read and hashed in one such slice."""


def stand_back() -> None:
    """What a thread that loads does first: leave the cores to those who answer.

    On Linux a thread has a priority and a way of being scheduled of its own. A thread
    of SCHED_BATCH does not push aside the one that has just woken it, which is the
    event loop, often in the middle of an answer. It comes seldom, then, and so it may
    stay for longer: beside strangers who keep all cores busy, each turn waits for
    theirs, and the slowest loads took five times as long.
    Neither helps against the interpreter's lock (runtime/loading.py does), and a lower
    rank than this would hurt: a thread that is put aside while it has that lock keeps
    everybody waiting. What loads cost a resident model is measured by bench/storm.py.
    """
    if sys.platform == "linux":
        # A sandbox may refuse any of it: then they load at the rank they have.
        with contextlib.suppress(OSError):
            me = threading.get_native_id()
            rank = max(NICE, os.getpriority(os.PRIO_PROCESS, me))
            os.setpriority(os.PRIO_PROCESS, me, rank)
        if not slices.ask_for(SLICE_S, os.SCHED_BATCH):
            with contextlib.suppress(OSError):
                os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


async def to_its_end(
    executor: Executor, fn: Callable[[Unpack[Ts]], T], *args: *Ts
) -> T:
    """`fn(*args)` in the executor. A cancellation is raised when the thread ends."""
    return await begun(executor, fn, *args)


def begun(
    executor: Executor, fn: Callable[[Unpack[Ts]], T], *args: *Ts
) -> Coroutine[None, None, T]:
    """The same, begun already: something can be done before it is waited for."""
    return _ended(asyncio.get_running_loop().run_in_executor(executor, fn, *args))


async def _ended(future: asyncio.Future[T]) -> T:
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        await settled(future)
        raise


async def together(work: Sequence[Coroutine[None, None, None]]) -> None:
    """All of it at once, to its end. The first failure calls the others off."""
    if len(work) == 1:
        await work[0]
        return
    tasks = [asyncio.create_task(each) for each in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        for task in tasks:
            await settled(task)


async def settled(future: asyncio.Future[T]) -> None:
    """Wait until the future is done, however often we are cancelled meanwhile."""
    while not future.done():
        try:
            await asyncio.wait((future,))
        except asyncio.CancelledError:
            continue
    if not future.cancelled():
        future.exception()  # read, so that the loop does not report it as never seen
