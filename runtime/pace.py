"""How long a call takes, by graph and shapes: is it short enough for the event loop?

A hop to a lane and back costs more than a small model's forward (measured: 40 to 140 us
against 27 us for an MLP 64-256-256-10). So a call that has shown to be short runs where
it is asked for; all others go to a lane, and on a GPU all that are not recorded.

What counts is the time that its thread had a core. By the wall a call in a lane is as
long as others keep the interpreter from it, and what the lane makes long would stay
there (docs/decisions/0018).

Owns: the measured times and the bound. Must not: run anything.
"""

from runtime.conformance import Signature

INLINE_S = 500e-6
"""What a call may hold the event loop up for: about what the loop spends on two cold
requests anyway, and what a hop to a lane costs while models are being loaded."""

TURN_S = 1e-3
"""What one call of many requests, and all calls of one turn of the loop together, may
hold it up for."""

SEEN = 3
"""Calls to be seen in a lane first; the very first of a graph is always slow."""

STALL_S = 10 * TURN_S
"""A call that held the loop up for longer counts by the wall: whatever it waited for
(threads of its own for a core, weights that were swapped out) is better waited for in a
lane. One such call is enough to send the next ones there."""

KEPT = 8192
"""Shapes remembered; who was seen first is forgotten first."""

Key = tuple[str, Signature, int]


class Pace:
    """Moving averages of seconds a call, by graph and the shapes of its inputs.

    Rows are told apart by powers of two: a call of 17 to 32 rows is one of 32.
    """

    def __init__(self, bound: float = INLINE_S) -> None:
        self._bound = bound
        self._times: dict[Key, tuple[int, float]] = {}

    def told(
        self,
        digest: str,
        signature: Signature,
        rows: int,
        seconds: float,
        held_up: float = 0.0,
    ) -> None:
        """A call of this shape had a core for so long; and held the loop up for so long
        by the wall, if it ran there."""
        if held_up > STALL_S:
            seconds = held_up
        key = digest, signature, (rows - 1).bit_length()
        seen, mean = self._times.get(key, (0, seconds))
        if seen == 0:
            mean = 0.0
            if len(self._times) >= KEPT:
                del self._times[next(iter(self._times))]
        elif seen == 1:
            mean = seconds  # the first is not counted: it met cold caches
        else:
            mean += (seconds - mean) * 0.2
        self._times[key] = seen + 1, mean

    def is_short(
        self, digest: str, signature: Signature, rows: int, requests: int = 1
    ) -> bool:
        """True if a call of this shape may run on the event loop: if what it saves so
        many requests could have run there one by one."""
        key = digest, signature, (rows - 1).bit_length()
        seen, mean = self._times.get(key, (0, 0.0))
        return seen >= SEEN and mean < min(self._bound * requests, TURN_S)
