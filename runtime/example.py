"""Inputs for a trial: those of a call that was asked, and went well.

Numbers of our own making might be an index beyond its table to a graph that counts from
1: on a GPU that ends the process, and no request was wrong.

Owns: keeping an example, and making inputs of it. Must not: try anything.
"""

from dataclasses import dataclass

import torch

from runtime.conformance import Fitted
from runtime.contents import Piece, array_of, tensor_of

COPIED = 1 << 16
"""Bytes of an input that are copied on the event loop, if one row is not more."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What a call looks like. `rows`: at most; 0: the graph has no rows. `example`: the
    inputs of one, with fewer rows as a rule."""

    example: tuple[Piece, ...]
    rows: int

    def inputs(self, device: torch.device) -> list[torch.Tensor]:
        """The example's rows, over and over."""
        inputs = [tensor_of(piece) for piece in self.example]
        if self.rows:
            inputs = [given[torch.arange(self.rows) % len(given)] for given in inputs]
        return [given.to(device) for given in inputs]


def terms(asked: Fitted, rows: int) -> Terms:
    """How its inputs look. The example is copied, one row if there are many bytes: the
    request's own may be another's before a trial has ended."""
    example = []
    for piece in asked.pieces:
        array = array_of(piece)
        if rows:
            array = array[: rows if array.nbytes <= COPIED else 1]
        example.append(Piece(piece.datatype, array.shape, array.tobytes()))
    return Terms(tuple(example), rows)
