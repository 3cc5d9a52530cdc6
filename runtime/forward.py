"""A batch through its model: one tensor an input, one call, an answer a request.

Owns: how jobs become one call, what each gets of its outputs, and what becomes of them
when it fails. Must not: queue, wait, or know the event loop: it runs in a lane, or
wherever a call is known to be short.

What a request gets does not depend on who shares its call, within what the device's
kernels make of the same row in a batch of another size: BLAS sums in another order, so
floats may differ in their last bits; integers and booleans are equal.
"""

import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from loader.across import stacked
from loader.errors import DeviceFull, DeviceLost
from loader.generated import Forward
from loader.load import Model
from runtime.conformance import Fitted
from runtime.contents import Part, joined, part_of, split, tensor_of
from runtime.recorded import Recording

LOST = (torch.AcceleratorError, DeviceLost)

Outcome = list[Part] | Exception
"""The outputs of one request, or why there are none."""


@dataclass(frozen=True, slots=True)
class Ended:
    """What became of each request of a call, the seconds it took, and those of them
    that its thread had a core (the others went to threads that wanted the interpreter,
    or the machine elsewhere)."""

    outcomes: Sequence[Outcome]
    seconds: float
    busy: float = 0.0


def forward(model: Model, batch: Sequence[Fitted]) -> Ended:
    """One call for all; should it fail, one call each, so that one bad request (or a
    batch too large for the memory left) takes no other down with it."""
    began, busy = time.perf_counter(), time.thread_time()
    outcomes: Sequence[Outcome]
    if len(batch) == 1:
        outcomes = [alone(model, batch[0])]
    else:
        # Not in the `except`: there the failed call's tensors would still be held.
        outcomes = _together(model, batch) or [alone(model, asked) for asked in batch]
    return Ended(outcomes, time.perf_counter() - began, time.thread_time() - busy)


def played(recording: Recording, model: Model, batch: Sequence[Fitted]) -> Ended:
    """One call for all, from its recording; as `forward` if that is busy or fails."""
    began, busy = time.perf_counter(), time.thread_time()
    try:
        outcomes = recording.play(model, batch)
    except LOST:
        raise
    except Exception:  # noqa: BLE001 - tried without it, and then told to each
        outcomes = None
    if outcomes is None:
        return forward(model, batch)
    return Ended(outcomes, time.perf_counter() - began, time.thread_time() - busy)


def forward_across(
    call: Forward, models: Sequence[Model], batches: Sequence[Sequence[Fitted]]
) -> Ended:
    """One call for several models of one graph, each with as many rows; outcomes in the
    order of the batches. Should it fail, one call a request."""
    began, busy = time.perf_counter(), time.thread_time()
    outcomes: list[Outcome] = list(_across(call, models, batches))
    if not outcomes:
        for model, batch in zip(models, batches, strict=True):
            outcomes += [alone(model, asked) for asked in batch]
    return Ended(outcomes, time.perf_counter() - began, time.thread_time() - busy)


def _across(
    call: Forward, models: Sequence[Model], batches: Sequence[Sequence[Fitted]]
) -> list[list[Part]]:
    """Each request's outputs; none at all if the call failed."""
    every = [asked for batch in batches for asked in batch]
    first, count = models[0], len(models)
    try:
        columns = zip(*[asked.pieces for asked in every], strict=True)
        inputs = [joined(column).to(first.device) for column in columns]
        stack = [x.view(count, x.shape[0] // count, *x.shape[1:]) for x in inputs]
        outputs = call(*stacked(models), *stack)
        flat = [first.own(output.flatten(0, 1)).cpu() for output in outputs]
        return split([part_of(output) for output in flat], [a.rows for a in every])
    except Exception:  # noqa: BLE001 - tried one by one, and then told to each
        return []


def alone(model: Model, asked: Fitted) -> Outcome:
    """One request as one call."""
    try:
        return _call(model, tuple([tensor_of(piece) for piece in asked.pieces]))
    except LOST:
        raise  # nobody's own fault, and no other call can succeed (runtime/lanes.py)
    except Exception as error:  # noqa: BLE001 - the caller's to hear, not the batch's
        if _out_of_memory(error):
            return DeviceFull("the device has no memory left to run this request")
        # Its traceback holds the forward's frame and so every activation, for as long
        # as anybody holds the error: in a cycle of frames until the next collection.
        traceback.clear_frames(error.__traceback__)
        return error


def _out_of_memory(error: Exception) -> bool:
    """The CPU allocator raises a plain RuntimeError; the text is its only sign."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "allocate memory" in str(error)
    )


def _together(model: Model, batch: Sequence[Fitted]) -> list[list[Part]]:
    """Each request's outputs; none at all if the call failed."""
    try:
        columns = zip(*[asked.pieces for asked in batch], strict=True)
        whole = _call(model, tuple([joined(column) for column in columns]))
        return split(whole, [asked.rows for asked in batch])
    except Exception:  # noqa: BLE001 - tried one by one, and then told to each
        return []


def _call(model: Model, inputs: tuple[torch.Tensor, ...]) -> list[Part]:
    device = model.device
    if device.type == "cpu":
        return [part_of(output) for output in model.forward(inputs)]
    outputs = model.forward(tuple([t.to(device, non_blocking=True) for t in inputs]))
    return [part_of(output.cpu()) for output in outputs]
