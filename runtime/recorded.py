"""Calls of a graph that the device plays by itself.

    Slot       the weights of one graph, in one place. A model that is asked is copied
               there first, unless it is the one that is there already
    Recording  a call of so many rows (a power of two; fewer leave the last ones as
               they were) over a slot. Its inputs come from host memory and its outputs
               go there within the recording itself

Owns: both, and that one call at a time uses a recording. Must not: decide what is
recorded (runtime/recordings.py), or know what records (loader/tape.py).

Rows that nobody asked for are computed and thrown away; they hold what an earlier
request left there, the first of them the one that it was tried with. It was checked as
it came in, and no row looks at another.
"""

import time
import weakref
from collections.abc import Sequence

import numpy as np
import torch

from loader.model import Model
from loader.tape import Deck, Tape
from loader.weights import bind
from runtime.conformance import Fitted
from runtime.contents import Array, Part, array_of, part_of, split
from runtime.example import Terms

ALIGNED = 256
"""Bytes: where each input and output begins in host memory."""

RECENT = 0.2
"""The weight of the last call in what is expected of the next."""


class Unrecordable(Exception):
    """This call cannot be recorded; the text says why."""


class Slot:
    """Room for the weights of one graph. The deck's turn guards it."""

    def __init__(self, model: Model, deck: Deck) -> None:
        self.graph = model.graph
        self.device = model.device
        self._deck = deck
        self._held: Model | None = None
        whole = torch.empty(model.nbytes, dtype=torch.uint8, device=model.device)
        self._buffer = whole[: model.placed.placing.nbytes]
        self.weights = bind(model.views, whole)

    def hold(self, model: Model) -> None:
        """This model's weights are here for what is played next."""
        if self._held is not model:
            assert model.buffer is not None
            self._deck.copy(model.buffer[: self._buffer.numel()], self._buffer)
            self._held = model

    def let_go(self) -> None:
        """Whatever is here, it is no model's weights."""
        self._held = None

    def copy_to(self, other: torch.Tensor) -> None:
        """What `hold` costs; for a trial."""
        other.copy_(self._buffer)

    @property
    def nbytes(self) -> int:
        """Bytes of weights."""
        return self._buffer.numel()


class Recording:
    """One call of a slot's graph. Raises Unrecordable, RuntimeError, DeviceFull."""

    def __init__(self, slot: Slot, terms: Terms, deck: Deck) -> None:
        self.slot = slot
        self.seconds = 0.0
        """About how long it takes."""
        self.calls = 0
        self.nbytes = 0
        """Of host memory; on the device it has hardly more of its own."""
        self.failed = False
        """It is not to be played any more."""
        self._deck = deck
        self._busy = False
        self._rows = terms.rows
        with torch.inference_mode():
            self._inputs = terms.inputs(slot.device)
            like = slot.graph.eager(*slot.weights, *self._inputs)
            _check(like, terms.rows)
            everything = [*self._inputs, *like]
            places, self.nbytes = _places(everything)
            memory = deck.host(self.nbytes)
            # When the last call has ended that plays it, whoever dropped it before.
            weakref.finalize(self, deck.give_back, memory)
            host = [
                _view(memory, place, tensor)
                for place, tensor in zip(places, everything, strict=True)
            ]
            self.given = host[: len(self._inputs)]
            """The inputs in host memory."""
            self._outs = host[len(self._inputs) :]
            for given, device in zip(self.given, self._inputs, strict=True):
                given.copy_(device)
            self._tape: Tape = deck.record(self._work)
        self._arrays = [part_of(tensor).array for tensor in self.given]
        self._made = [part_of(tensor) for tensor in self._outs]

    def _work(self) -> None:
        for host, device in zip(self.given, self._inputs, strict=True):
            device.copy_(host, non_blocking=True)
        outputs = self.slot.graph.eager(*self.slot.weights, *self._inputs)
        for host, made in zip(self._outs, outputs, strict=True):
            host.copy_(made, non_blocking=True)

    def play(self, model: Model, batch: Sequence[Fitted]) -> list[list[Part]] | None:
        """Each request's outputs; None if it is being used just now."""
        with self._deck.turn:
            if self._busy:
                return None
            self._busy = True
            began = time.perf_counter()
            try:
                self.slot.hold(model)
                self._fill(batch)
                self._tape.play()
            except BaseException:
                self.slot.let_go()
                self._busy, self.failed = False, True
                raise
        try:
            self._tape.wait(self.seconds)
            shares = self._shares(batch)
        finally:
            self._busy = False
        self.calls += 1
        self.seconds += (time.perf_counter() - began - self.seconds) * RECENT
        return shares

    def rehearse(self) -> None:
        """One call, over whatever is in the slot and in host memory."""
        with self._deck.turn:
            self._tape.play()
        self._tape.wait(self.seconds)

    def eagerly(self) -> list[torch.Tensor]:
        """The same as it is without a recording: copies, a launch an op, copies."""
        given = [host.to(self.slot.device) for host in self.given]
        outputs = self.slot.graph.eager(*self.slot.weights, *given)
        return [made.cpu() for made in outputs]

    def agrees(self) -> bool:
        """True if the recording gives what the graph gives, on what is there now."""
        with self._deck.turn:  # or another model's weights might come in between
            wanted = self.eagerly()
            self._tape.play()
            self._tape.wait(1.0)
            return all(map(_close, wanted, self._outs))

    def _fill(self, batch: Sequence[Fitted]) -> None:
        if not self._rows:
            for given, piece in zip(self._arrays, batch[0].pieces, strict=True):
                _put(given, array_of(piece), piece.datatype)
            return
        at = 0
        for asked in batch:
            end = at + asked.rows
            for given, piece in zip(self._arrays, asked.pieces, strict=True):
                _put(given[at:end], array_of(piece), piece.datatype)
            at = end

    def _shares(self, batch: Sequence[Fitted]) -> list[list[Part]]:
        """Copies: the next call writes to the same memory."""
        if not self._rows:
            return [[Part(made.datatype, made.array.copy()) for made in self._made]]
        rows = sum([asked.rows for asked in batch])
        whole = [Part(made.datatype, made.array[:rows].copy()) for made in self._made]
        return [whole] if len(batch) == 1 else split(whole, [a.rows for a in batch])


def _put(to: Array, given: Array, datatype: str) -> None:
    # A byte other than 0 and 1 is undefined behaviour inside torch.
    if datatype == "BOOL":
        np.not_equal(given.view(np.uint8), 0, out=to)
    else:
        to[...] = given


def _close(made: torch.Tensor, played: torch.Tensor) -> bool:
    try:
        torch.testing.assert_close(played, made, equal_nan=True)
    except AssertionError:
        return False
    return True


def _check(outputs: Sequence[torch.Tensor], rows: int) -> None:
    for output in outputs:
        if rows and (output.dim() == 0 or output.shape[0] != rows):
            raise Unrecordable("an output without a row for each of the inputs'")


def _places(tensors: Sequence[torch.Tensor]) -> tuple[list[int], int]:
    """Where each lies in one piece of memory, and how long that is."""
    places, at = [], 0
    for tensor in tensors:
        places.append(at)
        at += -(-tensor.numel() * tensor.element_size() // ALIGNED) * ALIGNED
    return places, max(at, ALIGNED)


def _view(memory: torch.Tensor, at: int, like: torch.Tensor) -> torch.Tensor:
    nbytes = like.numel() * like.element_size()
    return memory[at : at + nbytes].view(like.dtype).view(like.shape)
