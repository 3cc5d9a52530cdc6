"""How many cores this process has, in time: those it may run on, and no more than its
control groups give it.

Owns: that number. Must not: choose cores (loader/cores.py, runtime/tree/cores.py).

Kubernetes bounds a container's cores by time (`cpu.max`), not by which: on a node of 64
a container with a limit of 2 sees 64. As many threads as that use its share up in the
first milliseconds of each tenth of a second, and then all of them stand still.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

from loader.cgroups import ROOT, groups, lines


def cores(root: Path = ROOT) -> int:
    """At least one; a part of a core counts as one."""
    if sys.platform != "linux":
        return os.cpu_count() or 1
    shares = [-(-quota // period) for quota, period in _quotas(root)]
    return max(1, min([len(os.sched_getaffinity(0)), *shares]))


def _quotas(root: Path) -> Iterator[tuple[int, int]]:
    """(microseconds, of so many) of each group above us that has a quota."""
    for folder, second in groups("cpu", root):
        if second:
            said = "".join(lines(folder / "cpu.max")).split()
        else:
            names = "cpu.cfs_quota_us", "cpu.cfs_period_us"
            said = ["".join(lines(folder / name)) for name in names]
        # "max" in version 2, -1 in version 1: none.
        if len(said) == 2 and all(word.isdecimal() for word in said):
            quota, period = int(said[0]), int(said[1])
            if period:
                yield quota, period
