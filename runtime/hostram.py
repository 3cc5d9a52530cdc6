"""How much host memory this process may still use, as Linux and its cgroup see it.

Owns: reading /proc/meminfo and the memory controller, version 2 or 1. Must not: keep
state or judge (runtime/vram.py, runtime/budget.py).

A container's limit is not in /proc/meminfo, and the tightest limit need not be the
innermost group's: every ancestor that has a limit counts. Page cache that the kernel
would drop (inactive_file) is not counted as used, which is also how kubelet computes
the working set it evicts by.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from loader.cgroups import ROOT, groups, lines


@dataclass(frozen=True, slots=True)
class _Dialect:
    """Where one version of the controller keeps what."""

    limits: tuple[str, ...]
    usage: str
    reclaimable: str


_V2 = _Dialect(
    # Above memory.high nothing is killed, but everything crawls: a limit to us.
    limits=("memory.max", "memory.high"),
    usage="memory.current",
    reclaimable="inactive_file",
)
_V1 = _Dialect(
    limits=("memory.limit_in_bytes",),
    usage="memory.usage_in_bytes",
    reclaimable="total_inactive_file",
)


def measure(root: Path = ROOT) -> tuple[int, int]:
    """(total, used) bytes under the tightest bound; OSError where there is no /proc.

    `total` is the smallest limit above us, `total - used` the smallest room under any.
    """
    scopes = [_machine(root), *_groups(root)]
    total = min(limit for limit, _ in scopes)
    room = min(limit - used for limit, used in scopes)
    return total, min(total, max(0, total - room))


def _machine(root: Path) -> tuple[int, int]:
    read = (root / "proc/meminfo").read_text().splitlines()
    kib = {
        name: int(rest.split()[0]) for name, _, rest in (x.partition(":") for x in read)
    }
    return kib["MemTotal"] * 1024, (kib["MemTotal"] - kib["MemAvailable"]) * 1024


def _groups(root: Path) -> Iterator[tuple[int, int]]:
    """(limit, used) of each control group above us that has a limit."""
    for folder, second in groups("memory", root):
        yield from _bounds(folder, _V2 if second else _V1)


def _bounds(folder: Path, dialect: _Dialect) -> Iterator[tuple[int, int]]:
    usage = "".join(lines(folder / dialect.usage))
    if not usage.isdecimal():
        return
    reclaimable = sum(
        int(line.split()[1])
        for line in lines(folder / "memory.stat")
        if line.split()[0] == dialect.reclaimable
    )
    used = max(0, int(usage) - reclaimable)
    for name in dialect.limits:
        limit = "".join(lines(folder / name))
        if limit.isdecimal():  # version 2 writes "max" for none
            yield int(limit), used
