"""Checking a weights file while its bytes land.

Owns: the two ways, by the whole file's SHA-256 or by each chunk's BLAKE3, and what is
said when they do not agree. Must not: read or place bytes.

Nobody may use a byte before `finish` has returned.
"""

import hashlib
from typing import Protocol

from blake3 import blake3

from loader.digest import LARGEST, Chunks
from loader.errors import ArtifactRefused
from loader.manifest import FileRef


class Damaged(ArtifactRefused):
    """Bytes are not those that model.json means. Asked for again they may be: this is
    how a bit that flipped on the way looks. `at`: where their chunk begins."""

    def __init__(self, place: str, reason: str, at: int = 0) -> None:
        super().__init__(place, reason)
        self.at = at


class Check(Protocol):
    """`ordered`: bytes must come from the first to the last, in one thread at a time.
    Else each chunk must, and several may come at once. `step`: no update goes across a
    multiple of it."""

    ordered: bool
    step: int

    def update(self, at: int, data: memoryview) -> None:
        """The bytes from `at` of the file on; never across the end of a chunk."""
        ...

    def finish(self) -> None:
        """Everything came. Raises ArtifactRefused if it is not what it should be."""
        ...


def check(file: FileRef) -> Check:
    """The way this file is to be checked."""
    return Whole(file) if file.chunks is None else ByChunk(file, file.chunks)


class Whole:
    """By one SHA-256. A file that begins again is checked again."""

    ordered = True

    step = LARGEST

    def __init__(self, file: FileRef) -> None:
        self._file = file
        self._digest = hashlib.sha256()

    def update(self, at: int, data: memoryview) -> None:
        """See Check."""
        if not at:
            self._digest = hashlib.sha256()
        self._digest.update(data)

    def finish(self) -> None:
        """See Check."""
        if self._digest.hexdigest() != self._file.sha256:
            raise ArtifactRefused(
                self._file.name, "its SHA-256 is not the one in model.json"
            )


class ByChunk:
    """By a BLAKE3 for each chunk. A chunk that begins again is checked again.

    Several threads, but never two with one chunk: so each entry has one writer, and
    what dict and set do in one step needs no lock.
    """

    ordered = False

    def __init__(self, file: FileRef, chunks: Chunks) -> None:
        self.step = chunks.size
        self._file = file
        self._chunks = chunks
        self._open: dict[int, blake3] = {}
        self._left = set(range(len(chunks.blake3)))

    def update(self, at: int, data: memoryview) -> None:
        """See Check. Raises Damaged with the chunk's last byte."""
        size = self._chunks.size
        index, within = divmod(at, size)
        if not within:
            self._left.add(index)
            self._open[index] = blake3()
        digest = self._open[index]
        digest.update(data)
        if within + len(data) == min(size, self._file.size - index * size):
            del self._open[index]
            if digest.hexdigest() != self._chunks.blake3[index]:
                raise Damaged(
                    self._file.name,
                    f"the BLAKE3 of chunk {index} is not the one in model.json",
                    index * size,
                )
            self._left.remove(index)

    def finish(self) -> None:
        """See Check."""
        if self._left:
            raise AssertionError("a chunk was never checked. This is a bug.")
