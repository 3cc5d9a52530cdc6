"""Room for one model in slabs of the device.

Owns: how slabs answer to what loader/room.py asks. Must not: keep a block.
"""

import asyncio
from collections.abc import Callable

import torch

from loader.placing import Placed
from loader.room import Array
from loader.slab import Block
from loader.slabs import Slabs


class SlabRoom:
    """Room for one model (loader.room.Room). `group`: of those it had best lie by.
    `told`: of what `placed` says, while the bytes are on their way."""

    def __init__(
        self,
        slabs: Slabs,
        group: str,
        told: Callable[[Block, Placed], None] | None = None,
    ) -> None:
        self._slabs = slabs
        self._group = group
        self._told = told

    @property
    def direct(self) -> bool:
        """See Room."""
        return self._slabs.memory.direct

    async def find(self, nbytes: int) -> Block:
        """See Room."""
        return await self._slabs.find(nbytes, self._group)

    def landing(self, block: Block) -> Array | torch.Tensor:
        """See Room."""
        buffer = self._slabs.buffer(block)
        return buffer.numpy() if buffer.device.type == "cpu" else buffer

    def placed(self, block: Block, placed: Placed) -> None:
        """See Room."""
        if self._told is not None:
            asyncio.get_running_loop().call_soon(self._told, block, placed)

    def trim(self, block: Block, nbytes: int) -> None:
        """See Room."""
        self._slabs.arena.trim(block, nbytes)

    def free(self, block: Block) -> None:
        """See Room."""
        self._slabs.free(block)
