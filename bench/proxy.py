"""A counting, delaying proxy before an S3 server: python -m bench.proxy --to HOST:PORT

Owns: a log of the requests that pass, and a delay before each, as a far store has. Must
not: change a byte, or be the bottleneck: answers go through `splice`, not Python.

It is a process of its own, so that its work is nobody else's CPU time. GET /-/log gives
the log and empties it: [[connection, method, path, range, if-match], ...].
"""

import argparse
import contextlib
import fcntl
import itertools
import json
import os
import socket
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.process import servers

PIPE = 1 << 20
"""Bytes a splice moves at most: the kernel's largest pipe for everybody."""
F_SETPIPE_SZ = 1031
LOG = "/-/log"


@dataclass(frozen=True, slots=True)
class Passed:
    """A request that went through."""

    connection: int
    method: str
    path: str
    range: str
    if_match: str


@dataclass(frozen=True, slots=True)
class Counter:
    """A proxy that runs, for whoever wants to know what passed."""

    endpoint: str

    def taken(self) -> list[Passed]:
        """What passed since it was asked the last time."""
        with urllib.request.urlopen(self.endpoint + LOG, timeout=10) as answer:
            return [Passed(*row) for row in json.load(answer)]


@contextlib.contextmanager
def proxy(to: str, delay: float = 0.0) -> Iterator[Counter]:
    """A proxy before the server at `to` (http://host:port) while the block runs."""
    address = to.removeprefix("http://")
    command = ["bench.proxy", "--to", address, "--delay", str(delay)]
    with (
        tempfile.TemporaryDirectory(prefix="proxy-") as folder,
        servers([("proxy", command)], Path(folder)) as (server,),
    ):
        yield Counter(f"http://{server.http}")


class Carrier:
    """Carries connections, a thread a direction."""

    def __init__(self, to: tuple[str, int], delay: float) -> None:
        self._to = to
        self._delay = delay
        self._log: list[Passed] = []
        self._numbers = itertools.count(1)

    def serve(self, listener: socket.socket) -> None:
        """Until the process is ended."""
        while True:
            client, _ = listener.accept()
            threading.Thread(target=self._carry, args=(client,), daemon=True).start()

    def _carry(self, client: socket.socket) -> None:
        with (
            contextlib.suppress(OSError),
            client,
            socket.create_connection(self._to) as server,
        ):
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            back = threading.Thread(target=splice, args=(server, client))
            back.start()
            try:
                self._forward(next(self._numbers), client, server)
            finally:
                shut(server)
                back.join()

    def _forward(
        self, number: int, client: socket.socket, server: socket.socket
    ) -> None:
        """Requests, one after the other; their bodies as they come."""
        with client.makefile("rb") as stream:
            while head := read_head(stream.readline):
                method, path, headers = parsed(head)
                if path == LOG:
                    self._tell(client)
                    return
                self._log.append(
                    Passed(
                        number,
                        method,
                        path,
                        headers.get("range", ""),
                        headers.get("if-match", ""),
                    )
                )
                if method in ("GET", "HEAD") and self._delay:
                    time.sleep(self._delay)
                server.sendall(head)
                left = int(headers.get("content-length", 0))
                while left:
                    piece = stream.read(min(left, PIPE))
                    server.sendall(piece)
                    left -= len(piece) or left

    def _tell(self, client: socket.socket) -> None:
        log, self._log = self._log, []
        rows = [[p.connection, p.method, p.path, p.range, p.if_match] for p in log]
        body = json.dumps(rows).encode()
        client.sendall(
            b"HTTP/1.1 200 OK\r\nconnection: close\r\n"
            b"content-length: %d\r\n\r\n" % len(body) + body
        )


def read_head(readline: Callable[[], bytes]) -> bytes:
    """A request's head with its empty line; b'' when the client is done."""
    lines = []
    while line := readline():
        lines.append(line)
        if line == b"\r\n":
            return b"".join(lines)
    return b""


def parsed(head: bytes) -> tuple[str, str, dict[str, str]]:
    """Method, path and headers (lower case) of a request's head."""
    first, *lines = head.decode("latin-1").rstrip().split("\r\n")
    method, path, _ = first.split(" ", 2)
    pairs = (line.split(":", 1) for line in lines)
    return method, path, {name.lower(): value.strip() for name, value in pairs}


def splice(source: socket.socket, sink: socket.socket) -> None:
    """All bytes of `source` to `sink` through a pipe, without seeing one of them."""
    out, into = os.pipe()
    try:
        fcntl.fcntl(into, F_SETPIPE_SZ, PIPE)
        while count := os.splice(source.fileno(), into, PIPE):
            while count:
                count -= os.splice(out, sink.fileno(), count)
    except OSError:
        pass  # one of the two has gone
    finally:
        os.close(out)
        os.close(into)
        shut(sink)


def shut(end: socket.socket) -> None:
    """No more in either direction; whoever waits for it wakes up."""
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)


def main(arguments: Sequence[str] | None = None) -> None:
    """The process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--to", required=True, metavar="HOST:PORT")
    parser.add_argument("--delay", type=float, default=0.0, metavar="SECONDS",
                        help="before each GET and HEAD. Default: 0")  # fmt: skip
    options = parser.parse_args(arguments)
    host, _, port = options.to.rpartition(":")
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        here = f"127.0.0.1:{listener.getsockname()[1]}"
        print(json.dumps({"event": "serving", "grpc": "", "http": here}), flush=True)
        Carrier((host, int(port)), options.delay).serve(listener)


if __name__ == "__main__":
    main()
