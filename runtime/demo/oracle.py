"""Whose weights gave this answer: every answer against the asked model's own.

Owns: the reference scores, computed here from the packed files, and the verdicts. Must
not: ask the server anything.

For each (model, test image) the reference is what the packed graph over the packed
weights gives on the CPU, in this process. An answer is the asked model's if all ten of
its scores agree with that model's reference within `tolerance`. That proves something
only if any other model's scores differ by more than twice as much: `separation` is the
smallest difference between two models on one image, and the summary checks it.
"""

from dataclasses import dataclass

import numpy as np

from runtime.demo.stream import ANSWERED, Answers, Floats, Stream

CPU_TOLERANCE = 1e-4
"""Batches of other sizes add up in another order: last bits of scores around 10."""

GPU_TOLERANCE = 2e-2
"""cuDNN may run convolutions in TF32, with 10 bits of mantissa."""


def tolerance(device: str) -> float:
    """How far an answer from that device may be from the reference."""
    return CPU_TOLERANCE if device.startswith("cpu") else GPU_TOLERANCE


@dataclass(frozen=True, slots=True)
class Verdicts:
    """One flag a request: answered at all; by the asked model; with the right digit."""

    answered: np.ndarray
    own: np.ndarray
    right: np.ndarray

    @property
    def wrong_model(self) -> int:
        """Answers that are not the asked model's."""
        return int((self.answered & ~self.own).sum())

    @property
    def accuracy(self) -> float:
        """Share of the answers with the right digit."""
        return float(self.right[self.answered].mean()) if self.answered.any() else 0.0


@dataclass(frozen=True, slots=True)
class Oracle:
    """`references[model, image]`: ten scores. `orders[model, output]`: a digit."""

    references: Floats
    orders: np.ndarray
    labels: np.ndarray
    tolerance: float

    def judge(self, stream: Stream, answers: Answers) -> Verdicts:
        """Every answer of the stream."""
        answered = answers.code == ANSWERED
        expected = self.references[stream.model, stream.image]
        apart = np.abs(answers.scores - expected).max(axis=1)
        chosen = answers.scores.argmax(axis=1)
        digits = self.orders[stream.model, chosen]
        return Verdicts(
            answered=answered,
            # a NaN is not below the tolerance, so it is nobody's answer
            own=answered & (apart <= self.tolerance),
            right=answered & (digits == self.labels[stream.image]),
        )

    def separation(self) -> float:
        """The smallest difference between two models' scores for the same image."""
        nearest = np.inf
        for place, mine in enumerate(self.references[:-1]):
            others = self.references[place + 1 :]
            nearest = min(nearest, float(np.abs(others - mine).max(axis=2).min()))
        return nearest
