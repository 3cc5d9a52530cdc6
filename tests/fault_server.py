"""A small S3 server that can be told to misbehave.

Owns: enough S3 for obstore (GET with Range and If-Match, HEAD, ListObjectsV2), a log of
what was asked, and the faults of the reliability facts. It runs in the test's own event
loop; objects are put into `objects` by hand. No signature is checked: SeaweedFS does
that (tests/object_store.py).
"""

import asyncio
import contextlib
import gzip
import hashlib
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

BUCKET = "models"


@dataclass(frozen=True)
class Asked:
    """One request as it came."""

    method: str
    key: str
    start: int | None = None
    """First byte of the range; None: the whole object, or no object at all."""
    end: int | None = None
    if_match: str | None = None
    tapped: bool = False
    """It came by a signed URL (loader/tap.py)."""


@dataclass
class Exchange:
    """A request, the right answer to it, and the connection to answer on."""

    asked: Asked
    data: bytes
    """The bytes that were asked for."""
    whole: bytes
    writer: asyncio.StreamWriter
    server: "FaultServer"

    async def say(self, status: str, body: bytes, **headers: str) -> None:
        head = {
            "content-length": str(len(body)),
            "last-modified": "Sat, 21 Nov 2026 06:00:00 GMT",
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }
        lines = [f"HTTP/1.1 {status}", *(f"{n}: {v}" for n, v in head.items())]
        self.writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
        if self.asked.method != "HEAD":
            self.writer.write(body)
        await self.writer.drain()

    async def answer(self, body: bytes | None = None, **headers: str) -> None:
        """The right answer, but for what is given."""
        say, asked = {"etag": etag_of(self.whole), **headers}, self.asked
        status = "200 OK"
        if asked.start is not None:
            status = "206 Partial Content"
            last = asked.start + len(self.data) - 1
            span = f"bytes {asked.start}-{last}/{len(self.whole)}"
            say.setdefault("content_range", span)
        await self.say(status, self.data if body is None else body, **say)

    async def head_and(self, body: bytes) -> None:
        """The right head, which promises all bytes, and then only `body`."""
        await self.answer(body, content_length=str(len(self.data)))

    def reset(self) -> None:
        """End the connection with RST, as a crashed peer's kernel does."""
        linger = struct.pack("ii", 1, 0)
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.writer.transport.abort()


Fault = Callable[[Exchange], Awaitable[None]]


def etag_of(data: bytes) -> str:
    return f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'


class FaultServer:
    """Objects by key, and at most one fault: what it is, where, and how often."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.asked: list[Asked] = []
        self.url = ""
        self._fault: Fault | None = None
        self._key, self._start, self._times, self._end = "", 0, 0, 0
        self.struck = asyncio.Event()
        """Set when the fault was met for the first time."""
        self.flooded = 0
        """Bytes that clients took of bodies without end."""
        self.connections = 0
        self._open: dict[asyncio.Task, asyncio.StreamWriter] = {}

    def breaks(
        self,
        fault: Fault,
        key: str,
        start: int = 0,
        times: int = 1 << 30,
        end: int = 1 << 62,
    ):
        """From now on `fault` answers for ranges of `key` that begin in [start, end).

        Ranges are asked for at once and arrive in any order: which one a fault of few
        `times` meets is only certain where `end` leaves no other.
        """
        self._fault, self._key, self._times = fault, key, times
        self._start, self._end = start, end

    def mends(self) -> None:
        self._fault = None

    def gets(self, key: str) -> list[Asked]:
        return [asked for asked in self.asked if asked.key == key]

    def owns(self, task: asyncio.Task) -> bool:
        return task in self._open

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["FaultServer"]:
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()
            for task in self._open:
                task.cancel()
            await asyncio.gather(*self._open, return_exceptions=True)
            await server.wait_closed()
            await asyncio.sleep(0)  # the transports close themselves in here

    async def _connected(self, reader, writer) -> None:
        task = asyncio.current_task()
        self._open[task] = writer
        self.connections += 1
        try:
            while not writer.is_closing():
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                await self._serve(head, writer)
        except (asyncio.IncompleteReadError, asyncio.CancelledError, OSError):
            writer.transport.abort()  # they went away, or the test is over
        finally:
            del self._open[task]

    async def _serve(self, head: str, writer: asyncio.StreamWriter) -> None:
        first, *lines = head.strip().split("\r\n")
        method, target, _ = first.split(" ")
        headers = {k.lower(): v.strip() for k, v in (li.split(":", 1) for li in lines)}
        path = urlsplit(target)
        _, bucket, key = [*unquote(path.path).split("/", 2), ""][:3]
        assert bucket == BUCKET, target
        span = headers.get("range", "").removeprefix("bytes=").partition("-")
        start = int(span[0]) if span[0] else None
        end = int(span[2]) + 1 if span[2] else None
        tapped = "X-Amz-Signature" in path.query
        asked = Asked(method, key, start, end, headers.get("if-match"), tapped)
        self.asked.append(asked)
        if not key:
            body = self._listing(parse_qs(path.query)).encode()
            await Exchange(asked, b"", b"", writer, self).say("200 OK", body)
            return
        whole = self.objects.get(key)
        data = whole or b""
        exchange = Exchange(asked, data[start:end], data, writer, self)
        if self._strikes(asked):
            self._times -= 1
            self.struck.set()
            await self._fault(exchange)
        elif whole is None:
            await exchange.say(
                "404 Not Found", b"<Error><Code>NoSuchKey</Code></Error>"
            )
        elif asked.if_match not in (None, etag_of(whole)):
            await exchange.say("412 Precondition Failed", b"")
        else:
            await exchange.answer()

    def _strikes(self, asked: Asked) -> bool:
        there = self._start <= (asked.start or 0) < self._end
        there = there and asked.key == self._key
        return self._fault is not None and there and self._times > 0

    def _listing(self, query: dict[str, list[str]]) -> str:
        prefix = query.get("prefix", [""])[0]
        delimiter = query.get("delimiter", [""])[0]
        below = sorted(key for key in self.objects if key.startswith(prefix))
        contents, folders = [], {}
        for key in below:
            name, found, _ = key[len(prefix) :].partition(delimiter or "\0")
            if found:
                folders[prefix + name + delimiter] = None
                continue
            contents.append(
                f"<Contents><Key>{escape(key)}</Key><Size>{len(self.objects[key])}"
                f"</Size><LastModified>2026-11-21T06:00:00.000Z</LastModified>"
                f"<ETag>{escape(etag_of(self.objects[key]))}</ETag></Contents>"
            )
        common = [
            f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>"
            for name in folders
        ]
        return (
            '<?xml version="1.0"?><ListBucketResult><IsTruncated>false</IsTruncated>'
            f"{''.join(contents)}{''.join(common)}</ListBucketResult>"
        )


def status(line: str) -> Fault:
    """A status and nothing else of use."""

    async def fault(exchange: Exchange) -> None:
        await exchange.say(line, b"<Error><Code>Injected</Code></Error>")

    return fault


async def cut(exchange: Exchange) -> None:
    """Half of the body, then FIN."""
    await exchange.head_and(exchange.data[: len(exchange.data) // 2])
    exchange.writer.close()


async def reset(exchange: Exchange) -> None:
    """Half of the body, then RST."""
    await exchange.head_and(exchange.data[: len(exchange.data) // 2])
    exchange.reset()


async def reset_at_once(exchange: Exchange) -> None:
    exchange.reset()


async def flip(exchange: Exchange) -> None:
    """One bit of the middle byte is another."""
    body = bytearray(exchange.data)
    body[len(body) // 2] ^= 1
    await exchange.answer(bytes(body))


def flip_in(nth: int) -> Fault:
    """One bit of the nth byte is another."""

    async def fault(exchange: Exchange) -> None:
        body = bytearray(exchange.data)
        body[nth] ^= 1
        await exchange.answer(bytes(body))

    return fault


async def short(exchange: Exchange) -> None:
    """Half of the bytes, with a head that finds that right."""
    body = exchange.data[: len(exchange.data) // 2]
    last = (exchange.asked.start or 0) + len(body) - 1
    span = f"bytes {exchange.asked.start or 0}-{last}/{len(exchange.whole)}"
    ranged = {"content_range": span} if exchange.asked.start is not None else {}
    await exchange.answer(body, **ranged)


async def no_ranges(exchange: Exchange) -> None:
    """The whole object with 200, whatever range was asked for."""
    await exchange.say("200 OK", exchange.whole, etag=etag_of(exchange.whole))


async def page(exchange: Exchange) -> None:
    """The login page of some gateway, with 200."""
    body = b"<!doctype html><html><title>Sign in</title></html>"
    await exchange.say("200 OK", body, content_type="text/html", etag='"page"')


async def page_as_range(exchange: Exchange) -> None:
    """A page of exactly the right length."""
    await exchange.answer(b"<!doctype html>".ljust(len(exchange.data)))


async def hang(exchange: Exchange) -> None:
    """Accepted, and never a byte."""
    await asyncio.Event().wait()


async def stall(exchange: Exchange) -> None:
    """Half of the body, then silence with the connection open."""
    await exchange.head_and(exchange.data[: len(exchange.data) // 2])
    await asyncio.Event().wait()


async def drip(exchange: Exchange) -> None:
    """A byte now and then: no read ever times out."""
    await exchange.head_and(b"")
    for byte in exchange.data:
        exchange.writer.write(bytes([byte]))
        await exchange.writer.drain()
        await asyncio.sleep(0.05)


async def zipped(exchange: Exchange) -> None:
    """What was asked for, compressed, and said to be."""
    body = gzip.compress(exchange.data, 1)
    await exchange.answer(body, content_encoding="gzip")


async def other_range(exchange: Exchange) -> None:
    """The right number of bytes, of another place."""
    length, total = len(exchange.data), len(exchange.whole)
    at = 1 if (exchange.asked.start or 0) != 1 else 2
    body = exchange.whole[at : at + length].ljust(length, b"\0")
    await exchange.answer(body, content_range=f"bytes {at}-{at + length - 1}/{total}")


async def other_total(exchange: Exchange) -> None:
    """Another size of the whole object than the last time."""
    start = exchange.asked.start or 0
    span = f"bytes {start}-{start + len(exchange.data) - 1}/{len(exchange.whole) + 1}"
    ranged = {"content_range": span} if exchange.asked.start is not None else {}
    await exchange.answer(**ranged)


async def garbage(exchange: Exchange) -> None:
    """No HTTP at all."""
    exchange.writer.write(b"\x16\x03\x01\x00\xff220 smtp ready\r\n\r\n")
    await exchange.writer.drain()
    exchange.writer.close()


PETABYTE = 1 << 50
FLOOD = 64 << 20
"""Bytes after which a flood ends, so that a client that drinks it all survives."""


async def endless(exchange: Exchange) -> None:
    """A head that promises a petabyte, and a body that does not end."""
    span = f"bytes 0-{PETABYTE - 1}/{PETABYTE}"
    ranged = {"content_range": span} if exchange.asked.start is not None else {}
    await _flood(exchange, **ranged)


async def overlong(exchange: Exchange) -> None:
    """The right range, and more behind it, without end."""
    await _flood(exchange, exchange.data)


async def _flood(exchange: Exchange, first: bytes = b"", **headers: str) -> None:
    await exchange.answer(first, content_length=str(PETABYTE), **headers)
    for _ in range(FLOOD >> 20):
        exchange.writer.write(bytes(1 << 20))
        await exchange.writer.drain()
        exchange.server.flooded += 1 << 20
    exchange.writer.close()


def replaced(key: str, new: bytes, honest: bool = True) -> Fault:
    """Meanwhile somebody has written the object anew. A store that is not `honest`
    does not look at If-Match and sends ranges of the new one."""

    async def fault(exchange: Exchange) -> None:
        exchange.server.objects[key] = new
        asked = exchange.asked
        if honest and asked.if_match not in (None, etag_of(new)):
            await exchange.say("412 Precondition Failed", b"")
            return
        exchange.whole, exchange.data = new, new[asked.start : asked.end]
        await exchange.answer()

    return fault


def redirect(to: str) -> Fault:
    """Ask over there."""

    async def fault(exchange: Exchange) -> None:
        await exchange.say("302 Found", b"", location=to)

    return fault
