"""Which cores those who load keep off.

Owns: that choice, and telling the kernel. Must not: start a thread.
"""

import contextlib
import os
import sys
from collections.abc import Sequence


def leave_a_core() -> Sequence[int]:
    """Keep this process off one of several cores: what one does first that only loads.
    Gives the core, if any. A thread of it may still go there (`go_to`).

    A rank helps who is woken on our core only when the kernel looks: not in the middle
    of a system call where it is not interrupted (PREEMPT_NONE), nor against caches that
    are full of what we read. With a core that we are not on, those who answer are moved
    there by the kernel and stay (docs/decisions/0025).
    """
    if sys.platform != "linux":
        return ()
    first, *others = sorted(os.sched_getaffinity(0))
    with contextlib.suppress(OSError):  # a sandbox may refuse, and so does no core
        os.sched_setaffinity(0, others)
        return (first,)
    return ()


def go_to(cores: Sequence[int]) -> None:
    """What a thread does first that has cores of its own."""
    with contextlib.suppress(OSError):
        os.sched_setaffinity(0, cores)
