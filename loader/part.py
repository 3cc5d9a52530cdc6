"""An object of a store: what is given of it, and how it can fail to be there.

Owns: these words, which every kind of store speaks. Must not: read anything.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol

PIECE = 4 << 20
"""Bytes that are handed on at a time, at least: while they are copied and hashed the
next are on their way. With pieces of 1 MiB, handing them on cost a fifth more CPU time
and won nothing, behind a link of 30 ms either."""


class Pieces(Protocol):
    """Bytes as they come: an asynchronous iterator that is closed."""

    def __aiter__(self) -> AsyncIterator[memoryview]: ...

    async def aclose(self) -> None:
        """What was not taken is not fetched."""
        ...


@dataclass(frozen=True, slots=True)
class Part:
    """A range of an object on its way, with what the store said of the whole.

    `pieces` end where the range does or before; StoreUnreachable if the store sends
    more. Close them.
    """

    pieces: Pieces
    size: int
    etag: str | None


def agreed(known: str | None, etag: str | None) -> str | None:
    """The ETag of a file whose next part has `etag`: none is put together from two.
    None: the store does not say. Raises Changed."""
    if known is not None and etag is not None and etag != known:
        raise Changed
    return known if etag is None else etag


class Missing(Exception):
    """There is no object at that path. The caller knows what that means."""


class Changed(Exception):
    """The object is another one than when its first range was read."""
