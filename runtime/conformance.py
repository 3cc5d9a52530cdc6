"""Does this request fit this model?

Owns: the checks of a request's tensors against a ModelSpec, in Triton's words (clients
match on them). Must not: touch the wire, wait, or know how a model runs. Pure, and on
the hot path: one small input costs about two microseconds, and only an input with a
declared range is looked into.
"""

import torch

from loader.manifest import ModelSpec, TensorSpec
from runtime.datatypes import NAMES
from runtime.engine import Request
from runtime.errors import BadRequest


def conform(request: Request, spec: ModelSpec) -> tuple[torch.Tensor, ...]:
    """The request's tensors in the model's order, or BadRequest saying what differs."""
    given, wanted = request.inputs, spec.inputs
    if len(given) != len(wanted):
        raise BadRequest(
            f"expected {len(wanted)} inputs but got {len(given)} inputs "
            f"for model '{spec.name}'"
        )
    tensors: list[torch.Tensor] = []
    for want in wanted:
        tensor = given.get(want.name)
        if tensor is None:
            raise _unexpected(request, spec, want.name)
        if NAMES.get(tensor.dtype) != want.datatype or not _fits(
            tensor.shape, want.shape
        ):
            raise _misfit(tensor, want, spec)
        if want.max_shape or want.low is not None or want.high is not None:
            _check_bounds(tensor, want, spec)
        tensors.append(tensor)
    if spec.max_batch_size:
        _check_batch(tensors, spec)
    if request.outputs:
        _check_outputs(request, spec)
    return tuple(tensors)


def _fits(shape: torch.Size, wanted: tuple[int, ...]) -> bool:
    """Free dimensions take any size but none: no model was exported for nothing."""
    if len(shape) != len(wanted):
        return False
    for size, want in zip(shape, wanted, strict=True):
        if size != want and (want != -1 or size == 0):
            return False
    return True


def _misfit(tensor: torch.Tensor, want: TensorSpec, spec: ModelSpec) -> BadRequest:
    """What is wrong with a tensor that has another datatype or does not fit."""
    datatype, shape = NAMES.get(tensor.dtype, "unknown"), tensor.shape
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


def _unexpected(request: Request, spec: ModelSpec, missing: str) -> BadRequest:
    known = {want.name for want in spec.inputs}
    stranger = next(name for name in request.inputs if name not in known)
    return BadRequest(
        f"unexpected inference input '{stranger}' for model '{spec.name}', "
        f"missing required input '{missing}'"
    )


def _check_batch(tensors: list[torch.Tensor], spec: ModelSpec) -> None:
    for tensor, want in zip(tensors, spec.inputs, strict=True):
        if tensor.shape[0] != tensors[0].shape[0]:
            raise BadRequest(
                f"input '{want.name}' batch size does not match other inputs "
                f"for '{spec.name}'"
            )
        if tensor.shape[0] > spec.max_batch_size:
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


def _check_bounds(tensor: torch.Tensor, want: TensorSpec, spec: ModelSpec) -> None:
    """What indexes a table, by its value or by its place, must not reach past it."""
    # Empty if no dimension has a bound; else one for each (loader/manifest.py).
    for size, most in zip(tensor.shape, want.max_shape, strict=False):
        if most != -1 and size > most:
            raise BadRequest(
                f"unexpected shape for input '{want.name}' for model '{spec.name}'. "
                f"Expected at most {_dims(want.max_shape)}, got {_dims(tensor.shape)}"
            )
    if want.low is not None or want.high is not None:
        _check_range(tensor, want, spec)


def _check_range(tensor: torch.Tensor, want: TensorSpec, spec: ModelSpec) -> None:
    """An index outside its table must not reach a device: there it is fatal."""
    if not tensor.numel():
        return
    # numpy and not torch.aminmax: it is quicker on few elements, and knows uint64.
    array = tensor.numpy()
    if (want.low is not None and int(array.min()) < want.low) or (
        want.high is not None and int(array.max()) > want.high
    ):
        low = "any" if want.low is None else want.low
        high = "any" if want.high is None else want.high
        raise BadRequest(
            f"input '{want.name}' for model '{spec.name}' has a value outside its "
            f"range [{low},{high}]"
        )


def _dims(shape: tuple[int, ...]) -> str:
    return "[" + ",".join(map(str, shape)) + "]"
