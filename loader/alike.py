"""When two answers are the same: as far as their dtype tells.

Owns: the tolerances. Must not: run anything.
"""

import torch

TOLERANCE = {
    torch.float64: 1e-9,
    torch.float32: 1e-4,
    torch.float16: 2e-2,
    torch.bfloat16: 5e-2,
}
"""Relative to an output's largest value. Other dtypes must be equal."""


def alike(mine: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Equal as far as the dtype tells, by the largest value; of one shape and dtype."""
    if not torch.equal(mine.isfinite(), wanted.isfinite()):
        return False
    finite = wanted.isfinite()
    if not torch.equal(
        mine.masked_fill(finite, 0).nan_to_num(1.5),
        wanted.masked_fill(finite, 0).nan_to_num(1.5),
    ):
        return False
    mine, wanted = mine.masked_fill(~finite, 0), wanted.masked_fill(~finite, 0)
    if torch.equal(mine, wanted):
        return True
    gap = (mine.double() - wanted.double()).abs().max()
    return bool(gap <= TOLERANCE.get(mine.dtype, 0.0) * wanted.double().abs().max())
