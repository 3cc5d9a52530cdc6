"""How busy a machine is with what is none of ours, while something is measured.

Owns: the share of all cores that others took. Must not: measure the contenders.
"""

import os

import psutil


class Others:
    """From its making on. A load average lags behind; this does not."""

    def __init__(self) -> None:
        self._began = _busy()

    def share(self, ours: float) -> float:
        """CPU that others took, as a share of all that there was. `ours`: the CPU
        seconds of the contenders and their client in the same time."""
        busy, total = (
            now - then for now, then in zip(_busy(), self._began, strict=True)
        )
        return max(0.0, busy - ours) / total if total else 0.0


def load() -> float:
    """The load average of the last minute."""
    return round(os.getloadavg()[0], 2)


def _busy() -> tuple[float, float]:
    times = psutil.cpu_times()
    idle = times.idle + times.iowait
    # Guests are counted in user already.
    total = sum(times[:8])
    return total - idle, total
