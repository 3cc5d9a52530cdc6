"""What an order gives the porter: a model's file, and memory for its bytes.

Owns: how both look to the loader (loader/room.py). Must not: import torch.
"""

from dataclasses import dataclass

from loader.digest import FileRef
from loader.placing import Placed
from loader.room import Array
from loader.slab import Block
from runtime.porter.messages import MOST_HEADER


@dataclass(frozen=True, slots=True)
class Model:
    """Of which file (loader.room.Wanted)."""

    name: str
    directory: str
    weights: FileRef


class Untold(Exception):
    """The header is too long to be told."""


class Given:
    """A Room: memory that the engine has found and will free. `known`: the engine knows
    the header."""

    direct = True

    def __init__(self, memory: Array, known: bool) -> None:
        self._memory = memory
        self._known = known

    async def find(self, nbytes: int) -> Block:
        """See Room. The file's size bounds it (loader/placing.py)."""
        if nbytes > len(self._memory):
            raise AssertionError("More room is needed than was given. This is a bug.")
        return Block(None, 0, nbytes, "")

    def landing(self, block: Block) -> Array:
        """See Room."""
        return self._memory[: block.nbytes]

    def placed(self, block: Block, placed: Placed) -> None:
        """See Room. Before anything is read that would be read in vain."""
        if not self._known and len(placed.header) > MOST_HEADER:
            raise Untold

    def trim(self, block: Block, nbytes: int) -> None:
        """See Room."""

    def free(self, block: Block) -> None:
        """See Room. The engine does, when it hears."""
