"""How the threads of Envoy and of the event loop in it are scheduled.

Owns: that, on Linux, in two steps. Must not: choose cores, or fail.

A request goes through Envoy's worker, pyvoy's thread and the event loop's, some six
times from one to the next. By default each that is woken may push aside the one that
has woken it, in the middle of its work: a switch there and one back, and cold caches
for both. A thread of SCHED_BATCH pushes nobody aside; it takes an idle core, or the
one that is free when the other waits. So it finds more to do at once, too.

The event loop's thread stays as it was: what it has to be quick beside are threads
that load models (loader/threads.py), and those it pushes aside.
"""

import contextlib
import os
import sys


def take_turns() -> None:
    """Called before the process becomes Envoy, whose threads inherit it."""
    _moved("SCHED_OTHER", "SCHED_BATCH")


def push_ahead() -> None:
    """Called in the event loop's thread; what it starts (lanes, loaders) inherits."""
    _moved("SCHED_BATCH", "SCHED_OTHER")


def _moved(before: str, after: str) -> None:
    """From one policy to another. Who was started at another rank keeps it."""
    if sys.platform == "linux":
        # A sandbox may refuse: then all are scheduled alike.
        with contextlib.suppress(OSError):
            if os.sched_getscheduler(0) == getattr(os, before):
                os.sched_setscheduler(0, getattr(os, after), os.sched_param(0))
