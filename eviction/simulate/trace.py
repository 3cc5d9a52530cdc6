"""A trace: who was asked for when, how big each one is, what bringing it back takes.

Owns: the checked data every other part of the simulator trusts. Must not: read files.
"""

from collections.abc import Sequence
from dataclasses import dataclass


class TraceRefused(ValueError):
    """The trace cannot be replayed; the sentence says where and why."""


@dataclass(frozen=True, slots=True)
class Trace:
    """`ids[i]` is asked for at `times[i]`; an id indexes names, nbytes and reload_s."""

    name: str
    times: Sequence[float]
    ids: Sequence[int]
    names: Sequence[str]
    nbytes: Sequence[int]
    reload_s: Sequence[float]

    def __post_init__(self) -> None:
        if len(self.times) != len(self.ids):
            raise TraceRefused(
                f"{self.name}: {len(self.times)} times for {len(self.ids)} requests"
            )
        if not len(self.names) == len(self.nbytes) == len(self.reload_s):
            raise TraceRefused(f"{self.name}: names, sizes and costs differ in number")
        if self.ids and not (min(self.ids) >= 0 and max(self.ids) < len(self.names)):
            raise TraceRefused(f"{self.name}: a request for a model without a size")
        if any(n <= 0 for n in self.nbytes) or any(c < 0 for c in self.reload_s):
            raise TraceRefused(f"{self.name}: sizes are above 0 and costs not below")

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return (
            f"<Trace {self.name}: {len(self)} requests for {len(self.names)} models,"
            f" {self.total_bytes / 2**30:.1f} GiB>"
        )

    @property
    def total_bytes(self) -> int:
        """All models together; a budget is a share of this."""
        return sum(self.nbytes)

    def head(self, requests: int) -> "Trace":
        """The first `requests` requests, over the same models."""
        return Trace(
            self.name,
            self.times[:requests],
            self.ids[:requests],
            self.names,
            self.nbytes,
            self.reload_s,
        )
