"""How much of a device hotset may fill: the configured limit against what is there.

    capacity = min(configured bytes or fraction, free + ours - reserve), never below 0

Owns: reading a budget as people write it, the one formula above, the activation
reserve, and the tide that keeps the capacity calm. Must not: measure anything
(runtime/vram.py), know a clock, or say who leaves (eviction/). All of it is pure.

*The ledger plans, the gauge corrects*: nothing here is asked on a request's way; the
gauge is read now and then and the ledger is resized to what `Tide.told` answers.
"""

import re
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the gauge imports torch; a command that reads a budget need not
    from runtime.vram import Reading

MIB = 1024**2
GIB = 1024**3

# Kubernetes writes 4Gi, disks are sold in GB, people write GiB; all three are read.
_UNITS = {
    "": 1,
    "b": 1,
    **{f"{k}b": 1000**n for n, k in enumerate("kmgt", 1)},
    **{f"{k}i": 1024**n for n, k in enumerate("kmgt", 1)},
    **{f"{k}ib": 1024**n for n, k in enumerate("kmgt", 1)},
}
_AMOUNT = re.compile(r"(\d{1,18}(?:\.\d{1,9})?)\s*(%|[a-z]*)", re.ASCII)


class BudgetRefused(ValueError):
    """A budget that cannot be meant; the message says how to write one."""

    def __init__(self, text: str, reason: str) -> None:
        super().__init__(
            f"budget {text!r} {reason}; write a share of the device like '80%', "
            "or bytes like '4GiB', '512MB', '4000000000'"
        )


@dataclass(frozen=True, slots=True)
class Budget:
    """What the operator allows: `percent` of the device, or `nbytes` if that is set."""

    percent: Decimal = Decimal(80)
    nbytes: int | None = None

    def of(self, total: int) -> int:
        """Bytes allowed on a device of `total` bytes."""
        if self.nbytes is not None:
            return self.nbytes
        return int(total * self.percent / 100)

    def __str__(self) -> str:
        return f"{self.percent}%" if self.nbytes is None else f"{self.nbytes} bytes"


def parse_budget(text: str) -> Budget:
    """'80%', '4GiB', '4Gi', '512MB' or '4000000000' -> Budget; else BudgetRefused."""
    match = _AMOUNT.fullmatch(text.strip().lower())
    if match is None:
        raise BudgetRefused(text, "is not an amount")
    amount, unit = Decimal(match[1]), match[2]
    if unit == "%":
        if not 0 < amount <= 100:
            raise BudgetRefused(text, "is not a share between 0 and 100 %")
        return Budget(percent=amount)
    if unit not in _UNITS:
        raise BudgetRefused(text, f"has an unknown unit {unit!r}")
    nbytes = int(amount * _UNITS[unit])
    # '0.8' is nearly always meant as a share; as bytes it would be none at all.
    if nbytes < 1:
        raise BudgetRefused(text, "is less than one byte")
    return Budget(nbytes=nbytes)


def capacity(budget: Budget, reading: "Reading", reserve: int) -> int:
    """Bytes that models may hold now: what is allowed, and never more than is there.

    `ours` is added back because what we hold is ours to reuse: it is missing from
    `free` only because we filled it.
    """
    return max(0, min(budget.of(reading.total), reading.available - reserve))


def default_reserve(total: int, on_gpu: bool) -> int:
    """Bytes to leave for what is not weights: activations, workspaces, late kernels.

    On a GPU, cuBLAS and cublasLt keep 32 MiB each per stream and thread, and CUDA
    loads kernels lazily, so the context still grows after the first reading; 512 MiB
    covers a few lanes and a batch of a small model. 5 % lets a large card run large
    batches; beyond 4 GiB it would only waste memory on models this server is for.
    On a CPU there are no workspaces, and the kernels that are made late are bounded
    (loader/onednn.py: some 200 MB): half of both bounds.
    A quarter of the device is the most in any case, or a small one would hold nothing.
    """
    low, high = (512 * MIB, 4 * GIB) if on_gpu else (256 * MIB, 2 * GIB)
    return min(max(total // 20, low), high, total // 4)


class Tide:
    """Keeps a capacity calm. Told each new one, it answers with the one to act on.

    - A deep fall (over `band`) is followed at once: memory that is gone is gone, and
      evicting late means failing a load or a predict.
    - A shallow fall is followed once it has lasted `settle_s`: allocators breathe, and
      evicting models for each breath is thrash.
    - A rise is followed once it has lasted `grow_s`, and only as far as the lowest
      capacity of that time: what another process gives back it often takes again.

    `now` is any clock that never runs backwards, in seconds.
    """

    def __init__(
        self, band: float = 0.05, settle_s: float = 10.0, grow_s: float = 60.0
    ) -> None:
        self._band = band
        self._settle_s = settle_s
        self._grow_s = grow_s
        self._level: int | None = None
        #: Since when the capacity has been below or above the level; None: it is not.
        self._low_since: float | None = None
        self._high_since: float | None = None
        #: The lowest capacity seen since `_high_since`.
        self._floor = 0

    def told(self, now: float, capacity: int) -> int:
        """The capacity to act on, now that `capacity` was measured at `now`."""
        level = self._level
        if level is None or capacity < level * (1 - self._band):
            return self._stand_at(capacity)
        if capacity < level:
            return self._ebb(now, level, capacity)
        self._low_since = None
        if capacity > level:
            return self._flow(now, level, capacity)
        self._high_since = None
        return level

    def _ebb(self, now: float, level: int, capacity: int) -> int:
        self._high_since = None
        if self._low_since is None:
            self._low_since = now
        if now - self._low_since < self._settle_s:
            return level
        return self._stand_at(capacity)

    def _flow(self, now: float, level: int, capacity: int) -> int:
        if self._high_since is None:
            self._high_since, self._floor = now, capacity
        self._floor = min(self._floor, capacity)
        if now - self._high_since < self._grow_s:
            return level
        return self._stand_at(self._floor)

    def _stand_at(self, level: int) -> int:
        self._level = level
        self._low_since = self._high_since = None
        return level

    def __repr__(self) -> str:
        if self._high_since is not None:
            return f"<Tide {self._level} bytes, rising>"
        if self._low_since is not None:
            return f"<Tide {self._level} bytes, falling>"
        return f"<Tide {self._level} bytes, calm>"
