"""What an engine and its porter say to each other.

Owns: the messages, how a model's file and an error are told in them, and what is too
large to be told. Must not: carry weights: those are written where both see them.
"""

import msgspec

from loader.digest import Chunks, FileRef
from loader.errors import ArtifactRefused, LoadFailed, StoreDenied, StoreUnreachable
from loader.region import Run
from loader.room import Wanted
from loader.trades import Trade
from runtime.logs import Format, Level

MOST_CHUNKS = 4096
"""Digests of a file that are told: 128 KiB of them, of files up to 32 GiB."""
MOST_HEADER = 128 << 10
"""Bytes of a header that is told."""
MOST_CAUSE = 16384
"""Characters of an error's cause: more than a log looks at for secrets, so that none is
cut before it is hidden (runtime/logs.py)."""


class Begin(msgspec.Struct, tag=True, array_like=True):
    """Live. `opener`: the class whose `open` makes a store of `store`. `folder`,
    `size`: of the disk tier; an empty folder is none. `log`: format and level. Paths as
    the system has them, UTF-8 or not."""

    opener: str
    store: bytes
    folder: bytes
    size: int
    threads: int
    log: tuple[Format, Level]


class Came(msgspec.Struct, tag=True, array_like=True):
    """A slab, its descriptor, and how it is seen (loader/region.py)."""

    number: int
    nbytes: int
    runs: list[Run]


class Went(msgspec.Struct, tag=True, array_like=True):
    """A slab that is no more."""

    number: int


class Swapped(msgspec.Struct, tag=True, array_like=True):
    """Pages of a slab have changed places, in this order. None of them is a block's
    that was told before."""

    number: int
    trades: list[Trade]


class Fill(msgspec.Struct, tag=True, array_like=True):
    """Bring a model's bytes to `[start, start + nbytes)` of a slab. `known`: its header
    need not be told."""

    call: int
    name: str
    directory: str
    file: str
    size: int
    sha256: str
    chunk: int
    digests: bytes
    slab: int
    start: int
    nbytes: int
    urgent: bool
    known: bool


class Copy(msgspec.Struct, tag=True, array_like=True):
    """Copy bytes from a place to another: slab and start of each."""

    call: int
    source: tuple[int, int]
    target: tuple[int, int]
    nbytes: int


class Hurry(msgspec.Struct, tag=True, array_like=True):
    """A request waits for it as well now."""

    call: int


class CallOff(msgspec.Struct, tag=True, array_like=True):
    """Nobody wants it any more. It is answered all the same."""

    call: int


class Stop(msgspec.Struct, tag=True, array_like=True):
    """End, once what is being written to the disk tier is written."""


Order = Begin | Came | Went | Swapped | Fill | Copy | Hurry | CallOff | Stop


class Up(msgspec.Struct, tag=True, array_like=True):
    """It is ready."""


class Beat(msgspec.Struct, tag=True, array_like=True):
    """Its event loop turns."""


class Done(msgspec.Struct, tag=True, array_like=True):
    """The bytes are there, verified. `header`: empty if it was known."""

    call: int
    tier: str
    seconds: dict[str, float]
    header: bytes


class Failed(msgspec.Struct, tag=True, array_like=True):
    """Nothing is written there any more. `kind` and `said` make the error again;
    `cause` is for the log."""

    call: int
    kind: str
    said: tuple[str, ...]
    cause: str


class Disk(msgspec.Struct, tag=True, array_like=True):
    """Of the disk tier: files that came or were used, with their sizes, or went (0);
    hits, misses, evictions and failures so far; whether it writes."""

    files: list[tuple[str, int]]
    tally: tuple[int, int, int, int]
    up: bool


Report = Up | Beat | Done | Failed | Disk

ORDERS = msgspec.msgpack.Decoder(Order)
REPORTS = msgspec.msgpack.Decoder(Report)

UNTOLD = "untold"
"""Kind of a failure: the header is too long to be told."""
CALLED_OFF = "called off"
"""Kind of a failure: as was asked."""
BUG = "bug"
"""Kind of a failure: none of loader.errors."""


class Elsewhere(Exception):
    """What another process's error said was its cause."""


def fits(file: FileRef) -> bool:
    """True if a file can be told."""
    return file.chunks is None or len(file.chunks.blake3) <= MOST_CHUNKS


def fill_of(
    call: int, spec: Wanted, place: tuple[int, int, int], urgent: bool, known: bool
) -> Fill:
    """`place`: slab, start, bytes."""
    file, chunks = spec.weights, spec.weights.chunks
    return Fill(
        call, spec.name, spec.directory, file.name, file.size, file.sha256,
        chunks.size if chunks else 0,
        bytes.fromhex("".join(chunks.blake3)) if chunks else b"",
        *place, urgent, known,
    )  # fmt: skip


def file_of(fill: Fill) -> FileRef:
    """The file it names."""
    chunks = None
    if fill.chunk:
        text = fill.digests.hex()
        listed = tuple(text[at : at + 64] for at in range(0, len(text), 64))
        chunks = Chunks(fill.chunk, listed)
    return FileRef(fill.file, fill.size, fill.sha256, chunks)


def failed(call: int, error: BaseException) -> Failed:
    """An error as it is told."""
    cause = f"{type(error.__cause__).__name__}: {error.__cause__}"[:MOST_CAUSE]
    told = cause if error.__cause__ is not None else ""
    if isinstance(error, ArtifactRefused):
        return Failed(call, "refused", (error.place, error.reason), told)
    if isinstance(error, StoreDenied):
        return Failed(call, "denied", (error.message,), told)
    if isinstance(error, StoreUnreachable):
        return Failed(call, "unreachable", (error.message,), told)
    return Failed(call, BUG, (), f"{type(error).__name__}: {error}"[:MOST_CAUSE])


def error_of(told: Failed) -> LoadFailed:
    """The error again, if it was one of loader.errors."""
    error: LoadFailed
    if told.kind == "refused":
        error = ArtifactRefused(*told.said)
    elif told.kind == "denied":
        error = StoreDenied(*told.said)
    else:
        error = StoreUnreachable(*told.said)
    if told.cause:
        error.__cause__ = Elsewhere(told.cause)
    return error
