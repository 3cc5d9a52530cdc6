"""Copies between the device and the host tier: who makes them.

Owns: that question, and threads as its first answer (runtime/porter/ has another). Must
not: know what is copied.
"""

from concurrent.futures import Executor
from typing import Protocol

import torch

from loader.memory import carry
from loader.threads import to_its_end


class Carrier(Protocol):
    """Copies bytes while the event loop goes on."""

    async def carry(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """Returns when they are there; whatever it raises, CancelledError too, neither
        is touched any more."""
        ...


class Threads:
    """The loader's threads."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    async def carry(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """See Carrier."""
        await to_its_end(self._executor, carry, source, target)
