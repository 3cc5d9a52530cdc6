"""A tap on a near S3 store: bytes run from the socket into the place they are for.

obstore hands a body on in pieces of its own, which are copied into place: 200 MB from a
SeaweedFS beside us took 132 ms of CPU time so, and 46 read straight into place, both
hashed (bench.load). Where the store is as near as that, the CPU is what decides.

Owns: the connections, and how long the tap is left alone once it ran dry. Must not:
retry, follow a redirect, or explain: what is not just what was asked for is Dry, and
then the store is asked by the way that can tell what is wrong (loader/ranges.py).

Requests are signed by obstore, whose credentials they are, as URLs that are good for a
few minutes: such a URL is a secret, in no text and no log.
"""

import asyncio
import http.client
import re
import socket
import ssl
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import SplitResult, urlsplit

import structlog

from loader.part import Changed

log = structlog.get_logger()

Sign = Callable[[str], Awaitable[str]]
"""A path of the store -> a URL that whoever has it may GET, for some minutes."""

SIGNING_S = 1.0
"""Seconds for that: where credentials are fetched first, a load does not wait."""

CONNECT_S = 1.0
"""Seconds for each address that the store's name has."""

SILENCE_S = 5.0
"""Seconds after which a near store is not there."""

PORTS = {"http": 80, "https": 443}

ETAG = re.compile(r'(W/)?"[\x21\x23-\x7e]*"')
"""What may be sent back as If-Match (RFC 9110, 8.8.3); in ASCII, for obstore's sake."""

IDLE_S = 4.0
"""Seconds for which a connection is kept that nobody uses; most servers keep it for
five and more."""

KEPT = 8

ANOTHER = (http.client.NOT_FOUND, http.client.PRECONDITION_FAILED)
"""No fault of this way's."""

REST_S, LONGEST_REST_S = 10.0, 3600.0
"""Seconds until it is tried again, twice as long each time: a store that refuses signed
URLs will do so tomorrow."""


class Dry(Exception):
    """This way the bytes do not come."""


@dataclass(frozen=True, slots=True)
class Wish:
    """Bytes `[start, end)` of the object at `url`, which has `size`, and this ETag if
    one is known."""

    url: str = field(repr=False)
    start: int
    end: int
    size: int
    etag: str | None


class Tap:
    """Of one store. `ran`, `rest`, `signed` and `close` belong to the event loop, the
    others to any thread. `close` it when nobody draws from it any more."""

    def __init__(self, sign: Sign, tls: ssl.SSLContext | None = None) -> None:
        self._sign = sign
        self._tls = tls
        self._idle: deque[tuple[float, http.client.HTTPConnection]] = deque()
        self._closed_until = 0.0
        self._next_rest = REST_S

    @property
    def runs(self) -> bool:
        """True unless it ran dry a moment ago."""
        return time.monotonic() >= self._closed_until

    async def signed(self, path: str) -> str:
        """Where to ask for an object. Raises Dry."""
        try:
            async with asyncio.timeout(SIGNING_S):
                return await self._sign(path)
        except Exception as error:  # noqa: BLE001 - no credentials, or none that sign
            raise Dry(type(error).__name__) from None

    def ran(self) -> None:
        """A whole file came."""
        self._next_rest = REST_S

    def rest(self, why: str) -> None:
        """Leave it alone for a while."""
        if self.runs:  # else several loads have met the same
            log.info("weights come by obstore for a while", why=why, s=self._next_rest)
            self._closed_until = time.monotonic() + self._next_rest
            self._next_rest = min(2 * self._next_rest, LONGEST_REST_S)

    def kept(self) -> http.client.HTTPConnection | None:
        """A connection that was used before. It may be over by now."""
        oldest = time.monotonic() - IDLE_S
        with suppress(IndexError):  # there is none, or another thread took the last
            since, connection = self._idle.pop()
            if since >= oldest:
                return connection
            connection.close()
            self.close()  # the others are older
        return None

    def keep(self, connection: http.client.HTTPConnection) -> None:
        """All that was asked of it has been read."""
        self._idle.append((time.monotonic(), connection))
        with suppress(IndexError):
            while len(self._idle) > KEPT:
                self._idle.popleft()[1].close()

    def close(self) -> None:
        """No connection is left."""
        with suppress(IndexError):
            while True:
                self._idle.pop()[1].close()

    def connection(self, url: SplitResult) -> http.client.HTTPConnection:
        """A new one, connected. Raises OSError, ValueError."""
        host = url.hostname or ""
        # Told outright: of an address of IPv6 http.client takes the end for a port.
        port = url.port or PORTS.get(url.scheme, 0)
        made = (
            http.client.HTTPSConnection(
                host, port, timeout=CONNECT_S, context=self._tls
            )
            if url.scheme == "https"
            else http.client.HTTPConnection(host, port, timeout=CONNECT_S)
        )
        made.connect()
        made.sock.settimeout(SILENCE_S)
        return made


class Flow:
    """One answer: `open`, then `fill`, then `close`, in one thread at a time. `cut` it
    from any."""

    def __init__(self, tap: Tap) -> None:
        self._tap = tap
        self._cut = False
        self.came = 0
        """Bytes so far."""
        self._socket: socket.socket | None = None
        self._connection: http.client.HTTPConnection | None = None
        self._answer: http.client.HTTPResponse | None = None

    def open(self, wish: Wish) -> str | None:
        """Ask for it; gives the object's ETag. Raises Dry, and Changed if it is not the
        one it was any more."""
        answer = self._answer = self._asked(urlsplit(wish.url), wish)
        if answer.status in ANOTHER:
            raise Changed
        span = f"bytes {wish.start}-{wish.end - 1}/{wish.size}"
        if wrong := unlike(answer, span, wish.end - wish.start):
            raise Dry(wrong)
        etag = answer.headers.get("ETag")
        if etag is not None and not ETAG.fullmatch(etag):
            raise Dry("an odd ETag")
        return etag

    def fill(self, into: memoryview) -> None:
        """The next bytes, as many as `into` has. Raises Dry."""
        assert self._answer is not None, "Not open. This is a bug."
        done = 0
        try:
            while done < len(into):
                got = 0 if self._cut else self._answer.readinto(into[done:])
                if not got:
                    raise Dry("called off" if self._cut else "ended early")
                done += got
                self.came += got
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Dry(type(error).__name__) from None

    def cut(self) -> None:
        """Whoever reads gets no more, at once; who connects, once that is over."""
        self._cut = True  # first: who connects just now looks at it next
        if self._socket is not None:
            with suppress(OSError):  # it is over already
                # Not TLS's own, which would have the thread go on without TLS.
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def close(self) -> None:
        """Nobody reads it any more."""
        connection, answer = self._connection, self._answer
        if connection is None:
            return
        whole = answer is not None and answer.length == 0 and not self._cut
        if whole and connection.sock is not None:
            self._tap.keep(connection)
            return
        connection.close()
        if answer is not None:
            answer.close()  # has the socket if the store said that it will close it

    def _asked(self, url: SplitResult, wish: Wish) -> http.client.HTTPResponse:
        headers = {"Range": f"bytes={wish.start}-{wish.end - 1}"}
        if wish.etag is not None:
            headers["If-Match"] = wish.etag
        while not self._cut:
            kept = self._tap.kept()
            try:
                connection = self._connection = kept or self._tap.connection(url)
                self._socket = connection.sock
                if self._cut:
                    break
                connection.request("GET", f"{url.path}?{url.query}", headers=headers)
                return connection.getresponse()
            except (OSError, http.client.HTTPException, ValueError) as error:
                if kept is None or isinstance(error, TimeoutError):
                    raise Dry(type(error).__name__) from None
                kept.close()  # the store had closed it
        raise Dry("called off")


def unlike(answer: http.client.HTTPResponse, span: str, nbytes: int) -> str:
    """What is not as it was asked for; empty if all is."""
    if answer.status != http.client.PARTIAL_CONTENT:
        return f"status {answer.status}"
    if answer.headers.get("Content-Encoding"):
        return "encoded"
    if answer.headers.get("Content-Range") != span or answer.length != nbytes:
        return "another range"
    return ""
