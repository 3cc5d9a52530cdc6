"""Functions a graph calls instead of what torch would not check itself.

Owns: size arithmetic that stays within 64 bits, recurrent layers whose weights fit, and
division that survives its one overflow.
Must not: know the list of ops (loader/ops.py).

torch's CPU kernel for LSTMs believes the shapes it is given: with a weight too narrow
for its input it reads past the end, and what lies there is another model's. (Found by
calling every listed op with arguments a mutation away from good ones.)
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def times(left: int, right: int) -> int:
    """A product of sizes; larger than int64 is an error, not a larger number.

    Squaring in a chain would else double the digits with each node.
    """
    product = left * right
    if not -(2**63) <= product < 2**63:
        raise OverflowError("a size beyond 64 bits")
    return product


def div(
    input: Tensor, other: Tensor | float, *, rounding_mode: str | None = None
) -> Tensor:
    """aten.div.Tensor_mode and .Scalar_mode.

    The least integer by -1 does not fit its dtype; the processor ends a process for
    that (SIGFPE), whoever sent the numbers. It wraps here, as negation does.
    """
    dtype = torch.result_type(input, other)
    if rounding_mode == "trunc" and dtype in (torch.int32, torch.int64):
        below = torch.as_tensor(other, device=input.device).to(dtype)
        minus = below == -1
        found = torch.div(
            input, below.masked_fill(minus, 1), rounding_mode=rounding_mode
        )
        return torch.where(minus, -found, found)
    return torch.div(input, other, rounding_mode=rounding_mode)


def lstm(
    input: Tensor,
    hx: Sequence[Tensor],
    params: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """aten.lstm.input, for LSTMs without projections."""
    rest = (has_biases, num_layers, dropout, train, bidirectional, batch_first)
    _check_layers(4, input, hx, params, rest)
    found: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.lstm.input(
        input, hx, params, *rest
    )
    return found


def gru(
    input: Tensor,
    hx: Tensor,
    params: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, Tensor]:
    """aten.gru.input."""
    rest = (has_biases, num_layers, dropout, train, bidirectional, batch_first)
    _check_layers(3, input, (hx,), params, rest)
    found: tuple[Tensor, Tensor] = torch.ops.aten.gru.input(input, hx, params, *rest)
    return found


def _check_layers(
    gates: int,
    input: Tensor,
    states: Sequence[Tensor],
    params: Sequence[Tensor],
    rest: tuple[bool, int, float, bool, bool, bool],
) -> None:
    """Each weight must have the shape that input, states and the layers before ask."""
    biases, layers, _, _, both_ways, batch_first = rest
    ways = 2 if both_ways else 1
    if input.dim() != 3 or not states or states[0].dim() != 3:
        raise ValueError("a recurrent layer takes [batch, step, value] and its states")
    rows = input.shape[0 if batch_first else 1]
    width, size = input.shape[2], states[0].shape[2]
    wanted: list[tuple[int, ...]] = [(layers * ways, rows, size)] * len(states)
    for layer in range(layers):
        inner = size * ways if layer else width
        one: list[tuple[int, ...]] = [(gates * size, inner), (gates * size, size)]
        one += [(gates * size,)] * 2 if biases else []
        wanted += one * ways
    found = [*states, *params]
    if [tuple(tensor.shape) for tensor in found] != wanted:
        raise ValueError("the weights of a recurrent layer do not fit its input")
    if any(tensor.dtype != input.dtype for tensor in found):
        raise ValueError("a recurrent layer is of one dtype")
