"""How long the calling thread may run before it is another's turn.

Owns: asking the kernel for that, and hearing what it gives. Must not: say how long.

Linux 6.12 and later give each thread a slice of its own where one is asked for
(EEVDF; `sched_attr.sched_runtime` of a thread that has no deadline, sched(7)). Two
things follow from a long one: the thread, once it is on a core, ends more of its work
before the next gets it; and woken, it does not push aside who woke it. Its share of the
core stays what it was. Older kernels read the call and change no slice, and where there
is no such call (another system, a sandbox) nothing happens: all are scheduled alike.

Python has no name for either call, and glibc has had one only since 2.41.
"""

import ctypes
import os
import platform
import struct
import sys

_NUMBERS = {"x86_64": (314, 315), "aarch64": (274, 275)}
_SET_GET = _NUMBERS.get(platform.machine()) if sys.maxsize > 2**32 else None
"""Numbers of sched_setattr and sched_getattr: unistd.h of the kernel, 64 bits."""

_ATTR = struct.Struct("=IIQiIQQQ")
"""sched_attr as it was first: size, policy, flags, nice, priority, runtime (the slice,
ns), deadline, period."""

OWN = 0.0
"""The slice that the kernel gives everybody."""


def ask_for(seconds: float, policy: int) -> bool:
    """A slice of so many seconds (the kernel keeps it within 0.1 and 100 ms), or `OWN`,
    under a policy, SCHED_OTHER or SCHED_BATCH. Threads started from now on inherit it.
    False if it was refused or cannot be asked for; then nothing has changed."""
    if sys.platform != "linux" or _SET_GET is None:
        return False
    try:
        nice = os.getpriority(os.PRIO_PROCESS, 0)  # 0: this thread, not its process
    except OSError:  # a sandbox
        return False
    told = _ATTR.pack(_ATTR.size, policy, 0, nice, 0, round(seconds * 1e9), 0, 0)
    return _call(_SET_GET[0], 0, told, 0)


def given(thread: int = 0) -> float:
    """Seconds of a thread's slice, by its number in the system, or of the calling
    thread's; `OWN` where nothing is known of it."""
    if sys.platform != "linux" or _SET_GET is None:
        return OWN
    room = ctypes.create_string_buffer(_ATTR.size)
    if not _call(_SET_GET[1], thread, room, _ATTR.size, 0):
        return OWN
    runtime: int = _ATTR.unpack(room.raw)[5]
    return runtime / 1e9


def _call(number: int, thread: int, attr: object, *rest: int) -> bool:
    """The system call; False if it was refused."""
    done: int = ctypes.CDLL(None).syscall(number, thread, attr, *rest)
    return done == 0
