"""Does the packed model give what the original gives?

Owns: inputs nobody exported with, and the comparison. Must not: export or write.

The sizes of a trial are not those of the export: a batch that the export silently took
for a constant shows itself. Values are new too, so that rows are not alike.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from loader.alike import TOLERANCE
from loader.manifest import TensorSpec
from loader.pack_errors import PackRefused

NOISE = 0.1
SEED = 19


@dataclass(frozen=True, slots=True)
class Trial:
    """One set of inputs, in the model's order."""

    inputs: tuple[torch.Tensor, ...]

    @property
    def sizes(self) -> str:
        """For messages."""
        return ", ".join(str(list(tensor.shape)) for tensor in self.inputs)


def trials(
    specs: Sequence[TensorSpec], examples: Sequence[torch.Tensor], batched: bool
) -> tuple[Trial, ...]:
    """Two sets of inputs at sizes the examples do not have."""
    draw = torch.Generator().manual_seed(SEED)
    return tuple(
        Trial(
            tuple(
                _varied(spec, example, grow, batched, draw)
                for spec, example in zip(specs, examples, strict=True)
            )
        )
        for grow in (False, True)
    )


def _varied(
    spec: TensorSpec,
    example: torch.Tensor,
    grow: bool,
    batched: bool,
    draw: torch.Generator,
) -> torch.Tensor:
    """The example at other sizes, with other values that are as plausible."""
    value = example
    for dim, size in enumerate(spec.shape):
        if size == -1:
            new = _size(spec, dim, example.shape[dim], grow, batched)
            value = value.index_select(dim, torch.arange(new) % value.shape[dim])
    if value.is_floating_point():
        noise = torch.randn(value.shape, generator=draw, dtype=torch.float32)
        spread = value.float().std() if value.numel() > 1 else torch.tensor(1.0)
        return (value + noise.to(value.dtype) * (NOISE * (spread + 0.1))).to(
            value.dtype
        )
    if spec.low is not None and spec.high is not None:
        span = min(spec.high, 2**31) - spec.low + 1
        drawn = torch.randint(0, span, value.shape, generator=draw)
        return (drawn + spec.low).to(value.dtype)
    return value


def _size(spec: TensorSpec, dim: int, size: int, grow: bool, batched: bool) -> int:
    """Another size for a free dimension, within what the manifest allows."""
    if dim == 0 and batched:
        return size + 3 if grow else 1
    most = spec.max_shape[dim] if spec.max_shape else -1
    larger = size + 3 if most == -1 else min(size + 3, most)
    return larger if grow else max(1, size - size // 3)


def difference(
    ours: Sequence[torch.Tensor],
    theirs: Sequence[torch.Tensor],
    names: Sequence[str],
    trial: Trial,
) -> float:
    """The largest difference; PackRefused where it is more than rounding."""
    if len(ours) != len(theirs):
        raise PackRefused(f"{len(theirs)} outputs, {len(ours)} when packed")
    largest = 0.0
    for name, mine, original in zip(names, ours, theirs, strict=True):
        if mine.shape != original.shape or mine.dtype != original.dtype:
            raise PackRefused(
                f"output '{name}' is {original.dtype}{list(original.shape)}, packed "
                f"{mine.dtype}{list(mine.shape)} for inputs {trial.sizes}"
            )
        apart = _apart(mine, original)
        if apart > TOLERANCE.get(mine.dtype, 0.0) * _largest(original):
            raise PackRefused(
                f"output '{name}' differs by {apart:g} from the original's for inputs "
                f"{trial.sizes}; a model must be a function of inputs and weights"
            )
        largest = max(largest, apart)
    return largest


def _apart(mine: torch.Tensor, original: torch.Tensor) -> float:
    """The largest difference; NaN is equal to NaN, and infinity to itself."""
    if torch.equal(mine.isnan(), original.isnan()):
        mine, original = mine.nan_to_num(0.0), original.nan_to_num(0.0)
    if torch.equal(mine, original):
        return 0.0
    gap = (mine.double() - original.double()).abs()
    return float(gap.nan_to_num(math.inf).max())


def _largest(tensor: torch.Tensor) -> float:
    return float(tensor.double().abs().nan_to_num(0.0, 0.0).max())
