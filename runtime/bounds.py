"""Bounds: what a cache may do.

Owns: the numbers. Must not: act on them.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the cache may do. Times in seconds."""

    concurrent_loads: int = 4
    max_waiting: int = 16384
    patience: float = 30.0
    """How long a request without a deadline waits for room."""
    idle_ttl: float = 0.0
    """Who is idle for so long leaves; 0: nobody does."""
    anti_thrash: bool = True
    """Spirals are broken (eviction/spiral.py)."""
