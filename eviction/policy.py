"""What a policy is told, and its one answer.

Owns: the shape every policy has. Must not: hold code; a policy has no base class.

A policy only *scores*. It is told of every request (of absent models too: history
outlives eviction), of every load and every eviction, and is asked for one thing: how
many seconds of waiting each byte of a model saves while it stays, the density. The
lowest leaves first; `eviction.plan` picks the victims, once for all policies.

Five promises, held by tests/test_policy_contract.py for every policy:
1. no clock, no randomness, no I/O: `now` is told, and never runs backwards;
2. the same story gives the same answers;
3. `density` changes no later answer: asking is not doing;
4. one answer per model asked for, in that order; unknown models are no error;
5. after `forget` a model is as one never heard of.
"""

from collections.abc import Sequence
from typing import Protocol


class Policy(Protocol):
    """Told everything, asked for an order."""

    def on_request(self, model: str, now: float, resident: bool) -> None:
        """Somebody wants `model` at `now` (seconds, any origin)."""
        ...

    def on_load(self, model: str, nbytes: int, seconds: float, now: float) -> None:
        """`model` is resident now, holds `nbytes`, and took `seconds` to come."""
        ...

    def on_evict(self, model: str, now: float) -> None:
        """`model` leaves. Told once per victim, after the plan that chose it."""
        ...

    def forget(self, model: str) -> None:
        """`model` no longer exists in the catalog; drop all that is known of it."""
        ...

    def density(
        self, models: Sequence[str], now: float, reload_s: Sequence[float]
    ) -> Sequence[float]:
        """What each model is worth now, in expected seconds saved per byte kept.

        `reload_s[i]`: seconds it would take to bring `models[i]` back from the tier
        it would fall to, as known at this moment. Answers of one call compare with
        each other; nothing is promised between calls or between policies.
        """
        ...
