"""How the threads of Envoy and of the event loop in it take turns.

Owns: that, on Linux 6.12 and later, in two steps. Must not: choose cores, or fail.

A request goes through Envoy's worker, pyvoy's thread and the event loop's, some six
times from one to the next. By default each that is woken may push aside the one that
has woken it, in the middle of its work: a switch there and one back, and cold caches
for both. One with a long slice waits until the other waits, or takes an idle core; so
it finds more to do at once, too.

SCHED_BATCH does that as well, and did it here once. But a thread of SCHED_BATCH pushes
aside nobody at all: where strangers kept both cores busy, each of the six hops waited
for a stranger's turn to end, and a request took 8 ms instead of a third of one.

The event loop's thread stays as it was: what it has to be quick beside are threads
that load models (loader/threads.py), and those it pushes aside.
"""

import contextlib
import os
import sys

from loader import slices

SLICE_S = 0.01


def take_turns() -> None:
    """Called before the process becomes Envoy, whose threads inherit it."""
    _ask_for(SLICE_S)


def push_ahead() -> None:
    """Called in the event loop's thread; what it starts (lanes, loaders) inherits."""
    _ask_for(slices.OWN)


def _ask_for(seconds: float) -> None:
    """Who was started at another rank keeps it."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # a sandbox: then all are scheduled alike
            if os.sched_getscheduler(0) == os.SCHED_OTHER:
                slices.ask_for(seconds, os.SCHED_OTHER)
