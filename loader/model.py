"""A model in device memory.

Owns: the graph and the tensors of one resident model. Must not: know where its bytes
came from, or let any of them out: an output is never a view into the arena.
"""

from collections.abc import Sequence

import torch

from loader.graph import Graph
from loader.manifest import ModelSpec
from loader.room import Filled
from loader.weights import View, bind


class Model:
    """`forward(inputs)` runs it; `nbytes` is what the arena really gives it."""

    __slots__ = (
        "_home", "block", "buffer", "device", "graph", "nbytes", "phases", "placed",
        "spec", "tier", "views", "weights",
    )  # fmt: skip

    def __init__(
        self,
        spec: ModelSpec,
        graph: Graph,
        views: Sequence[View],
        filled: Filled,
        device: torch.device,
    ) -> None:
        self.device = device
        self.spec = spec
        self.graph = graph
        self.block = filled.block
        self.nbytes = filled.block.nbytes
        self.phases = filled.seconds
        self.placed = filled.placed
        self.tier = filled.tier
        """What it was loaded from: "host", "disk" or "store"."""
        self.weights: tuple[torch.Tensor, ...] = ()
        self.views = views
        self.buffer: torch.Tensor | None = None
        """All its bytes; None once it has left."""
        self._home = 0

    def bind(
        self, buffer: torch.Tensor, weights: tuple[torch.Tensor, ...] | None = None
    ) -> None:
        """The weights are views into `buffer` from now on, `weights` if they are made.
        Nobody runs it just now."""
        self.weights, self.buffer = weights or bind(self.views, buffer), buffer
        self._home = buffer.untyped_storage().data_ptr()

    @property
    def place(self) -> tuple[int, int]:
        """Where it lies: models of one slab in the order of their addresses."""
        return self._home, self.block.start

    def let_go(self) -> None:
        """Its bytes are another's from now on."""
        self.weights, self.buffer = (), None

    def forward(self, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """Outputs in the manifest's order. Inputs on the model's device."""
        outputs = self.graph.forward(*self.weights, *inputs)
        # A graph may give back a weight, or a view of one. Its bytes belong to another
        # model as soon as this one is evicted; the answer must not change with them.
        home = self._home
        for output in outputs:
            if output.untyped_storage().data_ptr() == home:
                return tuple([self.own(output) for output in outputs])
        return outputs

    def own(self, output: torch.Tensor) -> torch.Tensor:
        """The output, copied if it lies in the arena."""
        inside = output.untyped_storage().data_ptr() == self._home
        return output.clone() if inside else output
