"""What a tier tells of itself.

Owns: the shape of it, nothing else. Must not: import torch (`hotset top` reads this).
"""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Tier:
    """Bytes that models fall to when they leave the device ("host", "disk").

    `up`: False while it takes nothing more (a full or failing disk). `failures`: what
    it could not write or read, or read wrong.
    """

    name: str
    capacity: int
    held: int
    entries: int
    hits: int
    misses: int
    evictions: int
    failures: int
    up: bool = True


@dataclass(slots=True)
class Tally:
    """A tier's counts, while they count."""

    hits: int = 0
    misses: int = 0
    evictions: int = 0
    failures: int = 0

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(
            self.hits + other.hits,
            self.misses + other.misses,
            self.evictions + other.evictions,
            self.failures + other.failures,
        )


@dataclass(frozen=True, slots=True)
class Space:
    """How the device's arena stands. `fragmentation`: the share of its free bytes that
    lies outside the largest hole. `reserved`: what others on the device miss: slabs, or
    of lazily backed ones what is touched."""

    reserved: int = 0
    held: int = 0
    slabs: int = 0
    fragmentation: float = 0.0
    compactions: int = 0
    moved_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Tiers:
    """All of it, and the loads by the tier that served them. `porter`: the process that
    loads for us, 0 if there is none."""

    space: Space = field(default_factory=Space)
    loads: dict[str, int] = field(default_factory=dict)
    below: tuple[Tier, ...] = ()
    porter: int = 0
