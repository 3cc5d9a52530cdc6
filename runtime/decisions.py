"""Decisions: what the cache decided about whom, when, why and for whose sake.

    loaded     it came; how long that took
    left       it was sent away: for whom, its density and rank at that moment
    refused    its load failed, or was never begun
    shrunk     the device has less for us; no model of its own

Owns: the last `REMEMBERED` of them, as plain facts. Must not: decide, or log (the log
has its own lines; this is for `hotset explain`).
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from eviction.candidates import Candidate
from loader.manifest import ModelSpec
from runtime.residency import M, Residency

REMEMBERED = 4096
"""Some 2 MiB at most."""

What = Literal["loaded", "left", "refused", "shrunk"]


@dataclass(frozen=True, slots=True)
class Decision:
    """One of them. `at`: on the loop's clock. `cause`: name:version of the model for
    which it left. `density` in seconds saved per byte kept; `rank` 0 was to leave
    first, of `ranked`. `load_s`: what it cost to bring in; `reload_s`: what bringing
    it back was thought to cost."""

    at: float
    what: What
    model: str = ""
    version: str = ""
    reason: str = ""
    nbytes: int = 0
    cause: str = ""
    density: float | None = None
    rank: int | None = None
    ranked: int | None = None
    load_s: float | None = None
    reload_s: float | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a plan said of one who has to leave: for whom, and how it stood."""

    cause: str = ""
    density: float | None = None
    rank: int | None = None
    ranked: int | None = None


NO_VERDICT = Verdict()


class Decisions:
    """The newest, oldest first. Refusals are kept apart: anybody can cause many."""

    def __init__(self, remembered: int = REMEMBERED) -> None:
        self._kept: deque[Decision] = deque(maxlen=remembered)
        self._refused: deque[Decision] = deque(maxlen=remembered // 4)

    def __len__(self) -> int:
        return len(self._kept) + len(self._refused)

    def add(self, decision: Decision) -> None:
        """One more; the oldest makes room for it."""
        refused = decision.what == "refused"
        (self._refused if refused else self._kept).append(decision)

    def loaded(self, spec: ModelSpec, nbytes: int, load_s: float, now: float) -> None:
        """It came, and took so long from the moment it was let in."""
        self.add(
            Decision(
                now, "loaded", spec.name, spec.version, nbytes=nbytes, load_s=load_s
            )
        )

    def left(
        self,
        life: Residency[M],
        reason: str,
        leaving: Candidate,
        verdict: Verdict,
        now: float,
    ) -> None:
        """It was sent away."""
        self.add(
            Decision(
                now,
                "left",
                life.spec.name,
                life.spec.version,
                reason,
                leaving.nbytes,
                verdict.cause.partition("@")[0],
                verdict.density,
                verdict.rank,
                verdict.ranked,
                leaving.load_s,
                leaving.reload_s,
            )
        )

    def refused(self, spec: ModelSpec, reason: str, now: float) -> None:
        """Its load failed, or there was no room; `reason` is the error's kind."""
        self.add(Decision(now, "refused", spec.name, spec.version, reason))

    def shrunk(self, before: int, capacity: int, now: float) -> None:
        """The device has less for us."""
        reason = f"from {before} to {capacity} bytes"
        self.add(Decision(now, "shrunk", reason=reason, nbytes=capacity))

    def about(self, name: str, version: str, most: int) -> Sequence[Decision]:
        """The last `most` that concern it: it came, left, or pushed somebody out."""
        found = [
            one
            for one in [*self._kept, *self._refused]
            if (one.model, one.version) == (name, version)
            or one.cause == f"{name}:{version}"
        ]
        return sorted(found, key=lambda one: one.at)[-most:]

    def all(self) -> Sequence[Decision]:
        """Every one kept."""
        return sorted([*self._kept, *self._refused], key=lambda one: one.at)
