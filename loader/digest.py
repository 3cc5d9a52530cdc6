"""A file beside model.json: its name, its size, and the digests of its bytes.

Owns: what model.json says of it, and the making of digests. Must not: read files, or
decide what becomes of bytes that are wrong (loader/verify.py).

One SHA-256 over a file of weights is one thread's work and is known when the last byte
is. Chunks are checked in any order, by several threads, each as soon as it is there;
and one that came damaged is asked for again alone. BLAKE3 because it is a cryptographic
hash, as SHA-256 is, and four times as fast on one core (docs/decisions/0008).
"""

import re
from dataclasses import dataclass, field, replace

from blake3 import blake3

from loader.errors import ArtifactRefused
from loader.strictjson import array, integer, members, text

SMALLEST, LARGEST = 1 << 20, 8 << 20
"""Bytes of a chunk, a power of two: a range of the store (loader/ranges.py) is a whole
number of them."""

PACKED = 8 << 20
"""What a packer takes: most models are one chunk, whose digest is 64 digits."""

MOST = 8192
"""Chunks of a file: their digests must fit into model.json. Larger files (64 GiB) are
verified by their SHA-256."""

MAX_FILE = 1 << 40

_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_HEX = re.compile(r"[0-9a-f]{64}")
_MEANT = "64 lowercase hex digits"


@dataclass(frozen=True, slots=True)
class Chunks:
    """BLAKE3 (hex) of each `size` bytes of a file, in order; the last has what is left.

    `root` stands for all of them: files of the same root have the same bytes.
    """

    size: int
    blake3: tuple[str, ...]
    root: str = field(init=False, compare=False)

    def __post_init__(self) -> None:
        listed = bytes.fromhex("".join(self.blake3))
        whole = blake3(b"hotset chunks, " + self.size.to_bytes(8, "big") + listed)
        object.__setattr__(self, "root", whole.hexdigest())


@dataclass(frozen=True, slots=True)
class FileRef:
    """A file beside model.json: its name, size in bytes and SHA-256 (hex)."""

    name: str
    size: int
    sha256: str
    chunks: Chunks | None = None
    """Of weights: what they are verified by, if it is not the SHA-256."""

    @property
    def identity(self) -> str:
        """Stands for the bytes, wherever files are told apart or shared. It is made of
        what a load verifies: a SHA-256 that nobody checks must not lead to anybody
        else's bytes."""
        return self.sha256 if self.chunks is None else self.chunks.root


def chunked(data: bytes, size: int = PACKED) -> Chunks | None:
    """The digests of a file; None if it has too many chunks, or none."""
    view = memoryview(data)
    starts = range(0, len(data), size)
    if not 0 < len(starts) <= MOST:
        return None
    found = (blake3(view[at : at + size]).hexdigest() for at in starts)
    return Chunks(size, tuple(found))


def read_chunks(value: object, place: str, nbytes: int) -> Chunks:
    """What model.json says of a file of `nbytes`. Raises ArtifactRefused."""
    found = members(value, place, ("size", "blake3"))
    size = integer(found["size"], f"{place}.size", SMALLEST, LARGEST)
    if size & (size - 1):
        raise ArtifactRefused(f"{place}.size", "must be a power of two")
    there = f"{place}.blake3"
    listed = array(found["blake3"], there, MOST)
    wanted = -(-nbytes // size)
    if len(listed) != wanted or not listed:
        raise ArtifactRefused(
            there, f"must have a digest for each chunk: {wanted}, not {len(listed)}"
        )
    return Chunks(
        size,
        tuple(text(item, there, _HEX, _MEANT) for item in listed),
    )


def read_file(value: object, place: str, chunks: bool = False) -> FileRef:
    """A file as model.json has it; `chunks`: may it have them. Raises
    ArtifactRefused."""
    optional = ("chunks",) if chunks else ()
    found = members(value, place, ("file", "size", "sha256"), optional)
    file = FileRef(
        text(found["file"], f"{place}.file", _FILE_NAME, "a plain file name"),
        integer(found["size"], f"{place}.size", 0, MAX_FILE),
        text(found["sha256"], f"{place}.sha256", _HEX, _MEANT),
    )
    if "chunks" not in found:
        return file
    listed = read_chunks(found["chunks"], f"{place}.chunks", file.size)
    return replace(file, chunks=listed)


def file_json(file: FileRef) -> dict[str, object]:
    """As model.json has it."""
    said: dict[str, object] = {
        "file": file.name, "size": file.size, "sha256": file.sha256,
    }  # fmt: skip
    return said if file.chunks is None else {**said, "chunks": chunks_json(file.chunks)}


def chunks_json(chunks: Chunks) -> dict[str, object]:
    """As model.json has it."""
    return {"size": chunks.size, "blake3": list(chunks.blake3)}
