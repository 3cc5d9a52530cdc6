"""The models of bench.soak, and the right answer of each.

Owns: making them. Must not: measure.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from bench.floor_server import mlp
from bench.traffic import example, fleet, hidden_sizes
from loader.pack import export, write

ROWS = 16
"""Of the requests that are worth compressing."""
WIDE = 4 << 20
"""Elements of a message of 16 MiB."""


class Same(nn.Module):
    """What comes goes: the model of the large messages."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """See Module."""
        return x + 0.0


@dataclass(frozen=True, slots=True)
class Fleet:
    """Models in a store, the right answer of each to the example, and their bytes."""

    right: dict[str, torch.Tensor]
    nbytes: int


def make(store: Path, count: int, told: Callable[[int], object]) -> Fleet:
    """A fleet of mixed sizes, and `same`."""
    stored = fleet(store, count, told)
    wide = torch.zeros(1, WIDE)
    write(export(Same(), {"x": wide}, max_batch_size=0), store / "same" / "1")
    right = {}
    for index, (model, hidden) in enumerate(
        zip(stored, hidden_sizes(count), strict=True)
    ):
        with torch.inference_mode():
            right[model.name] = mlp(hidden, seed=index)(example(ROWS))
    return Fleet(right, sum(model.nbytes for model in stored))
