"""Where a model's bytes go: what is asked of whoever has the memory.

Owns: these words, spoken in the process of the device and in one that only loads. Must
not: know whose memory it is, or need torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from loader.digest import FileRef
from loader.placing import Placed
from loader.slab import Block

Array = npt.NDArray[np.uint8]
"""Bytes of host memory."""


class Wanted(Protocol):
    """Of which model: its name, its folder in the store, its file of weights."""

    @property
    def name(self) -> str:
        """For errors."""
        ...

    @property
    def directory(self) -> str:
        """Where its files are."""
        ...

    @property
    def weights(self) -> FileRef:
        """What is to be loaded."""
        ...


class Room(Protocol):
    """Memory for one model. `direct`: the CPU can write where the bytes are to be."""

    @property
    def direct(self) -> bool:
        """See Room."""
        ...

    async def find(self, nbytes: int) -> Block:
        """A block of so many bytes. Raises DeviceFull."""
        ...

    def landing(self, block: Block) -> Any:
        """The block's bytes: an Array if the CPU reaches them, else what the staging
        pool's rings push to (loader/pinned.py)."""
        ...

    def placed(self, block: Block, placed: Placed) -> None:
        """Where its bytes will lie, said before they come."""
        ...

    def trim(self, block: Block, nbytes: int) -> None:
        """It needs only its first `nbytes`."""
        ...

    def free(self, block: Block) -> None:
        """It came to nothing: nobody writes there any more."""
        ...


@dataclass(frozen=True, slots=True)
class Filled:
    """A block with a model's bytes in it, verified; where from, and what took long."""

    block: Block
    placed: Placed
    tier: str
    seconds: Mapping[str, float]


class Below(Protocol):
    """The tiers below the device, and the store."""

    @property
    def pid(self) -> int:
        """Of the process that loads just now; 0: this one."""
        ...

    async def fill(self, spec: Wanted, room: Room) -> Filled:
        """A block with the model's bytes in it, from the nearest of them.

        Raises one of loader.errors; whatever it raises, CancelledError too, the room
        holds no block of it then.
        """
        ...
