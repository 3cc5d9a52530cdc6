"""Does this request fit this model?

Owns: the checks of a request's tensors against a ModelSpec, in Triton's words (clients
match on them). Must not: touch the wire, wait, or know how a model runs. Pure, and on
the hot path: which shapes fit is worked out once for each that is seen, and only an
input with a declared range is looked into.
"""

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import torch

from loader.manifest import ModelSpec, TensorSpec
from runtime.contents import Piece, array_of, pieces_of, tensor_of
from runtime.engine import Request
from runtime.errors import BadRequest

FORMS = 8192
"""Models whose form is remembered; working one out takes microseconds."""
KEPT = 256
"""Combinations of shapes that are remembered as fitting, a model."""

Claim = tuple[str, tuple[int, ...]]
"""The datatype and shape of a tensor."""

Signature: TypeAlias = tuple[tuple[int, ...], ...]
"""The shapes of all inputs without their rows: only equal ones share a call."""


class Fitted(NamedTuple):
    """A request that fits: its inputs in the model's order."""

    pieces: Sequence[Piece]
    rows: int
    signature: Signature


class Form:
    """What a request of one model must look like."""

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec
        self._names = tuple(want.name for want in spec.inputs)
        self._ranged = any(
            want.low is not None or want.high is not None for want in spec.inputs
        )
        self._known: dict[tuple[Claim, ...], tuple[int, Signature]] = {}

    def fit(self, request: Request) -> Fitted:
        """The request's tensors, or BadRequest saying what differs."""
        given, spec = pieces_of(request.inputs), self._spec
        pieces = [given[name] for name in self._names if name in given]
        if not len(pieces) == len(given) == len(self._names):
            raise _unexpected(request, spec)
        claims = tuple([piece[:2] for piece in pieces])
        found = self._known.get(claims)
        if found is None:
            found = self._learn(claims)
        if self._ranged:
            for piece, want in zip(pieces, spec.inputs, strict=True):
                if want.low is not None or want.high is not None:
                    _check_range(piece, want, spec)
        if request.outputs:
            _check_outputs(request, spec)
        return Fitted(pieces, *found)

    def _learn(self, claims: tuple[Claim, ...]) -> tuple[int, Signature]:
        """Check shapes not seen before; datatypes too, for both come from the wire."""
        spec = self._spec
        for claim, want in zip(claims, spec.inputs, strict=True):
            datatype, shape = claim
            if datatype != want.datatype or not _fits(shape, want.shape):
                raise _misfit(claim, want, spec)
            _check_bounds(shape, want, spec)
        shapes = [shape for _, shape in claims]
        rows = 1
        if spec.max_batch_size and shapes:
            rows = shapes[0][0]
            _check_batch(shapes, spec)
        if len(self._known) >= KEPT:
            self._known.clear()
        # Without a batch dimension nothing shares a call: the shapes are only a name.
        first = 1 if spec.max_batch_size else 0
        found = rows, tuple([shape[first:] for shape in shapes])
        self._known[claims] = found
        return found


def conform(request: Request, spec: ModelSpec) -> tuple[torch.Tensor, ...]:
    """The request's tensors in the model's order, for whoever asks a model once."""
    return tuple([tensor_of(piece) for piece in Form(spec).fit(request).pieces])


def _fits(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Free dimensions take any size but none: no model was exported for nothing."""
    if len(shape) != len(wanted):
        return False
    for size, want in zip(shape, wanted, strict=True):
        if size != want and (want != -1 or size == 0):
            return False
    return True


def _misfit(claim: Claim, want: TensorSpec, spec: ModelSpec) -> BadRequest:
    """What is wrong with a tensor that has another datatype or does not fit."""
    datatype, shape = claim
    if datatype != want.datatype:
        return BadRequest(
            f"inference input '{want.name}' data-type is '{datatype}', "
            f"but model '{spec.name}' expects '{want.datatype}'"
        )
    if spec.max_batch_size and len(shape) == len(want.shape) and shape[0] == 0:
        return BadRequest(
            f"inference request batch-size must be >= 1 for '{spec.name}'"
        )
    return BadRequest(
        f"unexpected shape for input '{want.name}' for model '{spec.name}'. "
        f"Expected {_dims(want.shape)}, got {_dims(shape)}"
    )


def _unexpected(request: Request, spec: ModelSpec) -> BadRequest:
    """Too many inputs, too few, or others."""
    given, wanted = request.inputs, spec.inputs
    if len(given) != len(wanted):
        return BadRequest(
            f"expected {len(wanted)} inputs but got {len(given)} inputs "
            f"for model '{spec.name}'"
        )
    known = {want.name for want in wanted}
    stranger = next(name for name in given if name not in known)
    missing = next(want.name for want in wanted if want.name not in given)
    return BadRequest(
        f"unexpected inference input '{stranger}' for model '{spec.name}', "
        f"missing required input '{missing}'"
    )


def _check_batch(shapes: Sequence[tuple[int, ...]], spec: ModelSpec) -> None:
    for shape, want in zip(shapes, spec.inputs, strict=True):
        if shape[0] != shapes[0][0]:
            raise BadRequest(
                f"input '{want.name}' batch size does not match other inputs "
                f"for '{spec.name}'"
            )
        if shape[0] > spec.max_batch_size:
            raise BadRequest(
                "inference request batch-size must be <= "
                f"{spec.max_batch_size} for '{spec.name}'"
            )


def _check_outputs(request: Request, spec: ModelSpec) -> None:
    known = {output.name for output in spec.outputs}
    for name in request.outputs:
        if name not in known:
            raise BadRequest(
                f"unexpected inference output '{name}' for model '{spec.name}'"
            )


def _check_bounds(shape: tuple[int, ...], want: TensorSpec, spec: ModelSpec) -> None:
    """What indexes a table by its place must not reach past it."""
    # Empty if no dimension has a bound; else one for each (loader/manifest.py).
    for size, most in zip(shape, want.max_shape, strict=False):
        if most != -1 and size > most:
            raise BadRequest(
                f"unexpected shape for input '{want.name}' for model '{spec.name}'. "
                f"Expected at most {_dims(want.max_shape)}, got {_dims(shape)}"
            )


def _check_range(piece: Piece, want: TensorSpec, spec: ModelSpec) -> None:
    """An index outside its table must not reach a device: there it is fatal."""
    array = array_of(piece)
    if not array.size:
        return
    if (want.low is not None and int(array.min()) < want.low) or (
        want.high is not None and int(array.max()) > want.high
    ):
        low = "any" if want.low is None else want.low
        high = "any" if want.high is None else want.high
        raise BadRequest(
            f"input '{want.name}' for model '{spec.name}' has a value outside its "
            f"range [{low},{high}]"
        )


class Forms:
    """The forms of the models asked for, each worked out once."""

    def __init__(self) -> None:
        self._forms: dict[str, Form] = {}

    def of(self, spec: ModelSpec) -> Form:
        """What requests for this model must look like."""
        form = self._forms.get(spec.key)
        if form is None:
            if len(self._forms) >= FORMS:
                del self._forms[next(iter(self._forms))]
            form = self._forms[spec.key] = Form(spec)
        return form


def _dims(shape: tuple[int, ...]) -> str:
    return "[" + ",".join(map(str, shape)) + "]"
