"""A trial: does a call gain by being played from a recording, and is it right?

On made-up weights, because the model may leave meanwhile, and on a row of an input that
a model of the graph was asked with. In a thread of its own.

Owns: what is compared and timed. Must not: keep anything, or decide what it means
(runtime/recordings.py).
"""

from dataclasses import dataclass

import torch

from loader.model import Model
from loader.tape import Deck
from runtime.cross import filled, least
from runtime.example import Terms
from runtime.recorded import Recording, Slot, Unrecordable


@dataclass(frozen=True, slots=True)
class Found:
    """What a trial found: seconds of a call eager, played, and of copying weights."""

    recording: Recording
    eager: float
    played: float
    copied: float

    @property
    def gain(self) -> float:
        """For a model whose weights are not in the slot yet."""
        return self.eager / (self.played + self.copied)


def new_slot(model: Model, deck: Deck) -> Slot:
    """With numbers that no function makes infinite; an integer is 0, an index that
    every table has. In the thread."""
    slot = Slot(model, deck)
    for weight in slot.weights:
        weight.copy_(filled(weight.shape, weight.dtype, slot.device))
    return slot


def trial(slot: Slot, wanted: Terms, deck: Deck) -> Found:
    """Record it, compare it, time it. In the thread."""
    with torch.inference_mode():
        recording = Recording(slot, wanted, deck)
        if not recording.agrees():
            raise Unrecordable("played back, it gives other answers")
        other = torch.empty(slot.nbytes, dtype=torch.uint8, device=slot.device)
        eager, played, copied = least(
            slot.device, recording.eagerly, recording.rehearse,
            lambda: slot.copy_to(other),
        )  # fmt: skip
    recording.seconds = played
    return Found(recording, eager, played, copied)
