"""Messages in a body: a flag, four bytes of length, the bytes; perhaps compressed.

Owns: that frame, there and back, and the limit of what is taken into memory. Must not:
parse a message, or know a method.

A length over the limit ends the call when its five bytes are there, not when the
message is. A compressed message is inflated up to the limit and no further. What takes
long is done beside the event loop: zlib lets the GIL go.
"""

import asyncio
import zlib

from runtime.asgi.ended import Ended
from runtime.status import Code, Status

PREFIX = 5
COMPRESS_FROM = 1024
"""Bytes of an answer from which it is compressed, if its request was."""

INFLATE_BESIDE = 4 << 10
"""Compressed bytes from which a message is inflated in a thread: a thousand times as
many may come out."""
COMPRESS_BESIDE = 64 << 10
"""Bytes of an answer from which it is compressed in a thread."""

# zlib's window bits: 31 expects the header of gzip, 15 that of zlib (HTTP's deflate).
_WINDOWS = {b"gzip": 31, b"deflate": 15}


def length_of(head: bytes | bytearray, limit: int) -> int:
    """Bytes of the message that a frame announces; Ended if more than `limit`."""
    length = int.from_bytes(head[1:PREFIX], "big")
    if length > limit:
        raise too_large(length, limit)
    return length


def message_of(flag: int, payload: bytes, encoding: bytes, limit: int) -> bytes:
    """The message itself, inflated if its flag says that it is compressed."""
    if flag == 0:
        return payload
    if flag != 1:
        raise Ended(Status(Code.INTERNAL, 400, "a frame has an unknown flag"))
    window = _WINDOWS.get(encoding)
    if window is None:
        if encoding == b"identity":
            text = "a compressed message without an encoding"
            raise Ended(Status(Code.INTERNAL, 400, text))
        text = "the message's encoding is not supported; use gzip or deflate"
        raise Ended(Status(Code.UNIMPLEMENTED, 415, text))
    return _inflated(payload, window, limit)


async def inflated(flag: int, payload: bytes, encoding: bytes, limit: int) -> bytes:
    """`message_of` what is compressed, without holding up the event loop."""
    if len(payload) <= INFLATE_BESIDE:
        return message_of(flag, payload, encoding, limit)
    return await asyncio.to_thread(message_of, flag, payload, encoding, limit)


async def deflated(message: bytes, encoding: bytes) -> bytes:
    """`framed_like`, without holding up the event loop."""
    if len(message) <= COMPRESS_BESIDE:
        return framed_like(message, encoding)
    return await asyncio.to_thread(framed_like, message, encoding)


def framed(message: bytes) -> bytes:
    """A message as it goes out."""
    return b"\0" + len(message).to_bytes(4, "big") + message


def prefix(message: bytes) -> bytes:
    """What goes out before a message that is sent by itself."""
    return b"\0" + len(message).to_bytes(4, "big")


def framed_like(message: bytes, encoding: bytes) -> bytes:
    """A message as it goes out to one who compresses with `encoding`."""
    window = _WINDOWS.get(encoding)
    if window is None or len(message) < COMPRESS_FROM:
        return framed(message)
    deflater = zlib.compressobj(1, zlib.DEFLATED, window)
    payload = deflater.compress(message) + deflater.flush()
    return b"\1" + len(payload).to_bytes(4, "big") + payload


def too_large(length: int, limit: int, sent: str = "Received") -> Ended:
    """grpc's own words, which people search for."""
    text = f"{sent} message larger than max ({length} vs. {limit})"
    return Ended(Status(Code.RESOURCE_EXHAUSTED, 413, text))


def _inflated(payload: bytes, window: int, limit: int) -> bytes:
    inflater = zlib.decompressobj(window)
    try:
        message = inflater.decompress(payload, limit + 1)
    except zlib.error:
        text = "the compressed message cannot be read"
        raise Ended(Status(Code.INTERNAL, 400, text)) from None
    if len(message) > limit:
        raise too_large(len(message), limit)
    if not inflater.eof:
        raise Ended(Status(Code.INTERNAL, 400, "the compressed message is cut short"))
    return message
