"""h2load as a gRPC client: a C program, so that it takes little of what it measures.

Owns: its command line, the framed request, what it says of a run. Must not: judge an
answer's content; h2load counts HTTP 200, and a gRPC error is a 200 with no data. So a
run is right only if the bytes of data that came are exactly those of so many answers
(`Told.data`).
"""

import itertools
import os
import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.traffic import METHOD
from runtime.asgi.framing import framed as framed

PROGRAM = "h2load"
HOW_TO = (
    f"`{PROGRAM}` is not on the PATH: it is in Debian's and Ubuntu's package "
    "nghttp2-client, in Homebrew's nghttp2"
)
LONGEST_S = 120.0
"""A run that takes longer than this is hung."""

A_CONNECTION = 3_600
"""Requests over one connection, then a new one is made: a server may ask for that
(GOAWAY), which h2load does not follow and every gRPC client does."""

HEADERS = ("content-type: application/grpc", "te: trailers")


class LoadFailed(Exception):
    """A run that is not to be counted; the text says what went wrong."""


@dataclass(frozen=True, slots=True)
class Told:
    """One run. Latencies in seconds, ascending; `cpu`: the client's own seconds."""

    latencies: Sequence[float]
    seconds: float
    data: int
    cpu: float

    @property
    def rate(self) -> float:
        """Answers a second."""
        return len(self.latencies) / self.seconds

    def quantile(self, share: float) -> float:
        """The latency that `share` of all requests do not exceed."""
        last = len(self.latencies) - 1
        return self.latencies[min(last, int(share * len(self.latencies)))]


def missing() -> str:
    """Why it cannot be used; empty if it can."""
    return "" if shutil.which(PROGRAM) else HOW_TO


class Client:
    """Asks the same request again and again. `folder` takes the body and the log."""

    def __init__(self, folder: Path, request: bytes, cores: str = "") -> None:
        self._body = folder / "request"
        self._body.write_bytes(framed(request))
        self._log = folder / "latencies"
        self._pinned = ("taskset", "-c", cores) if cores else ()

    def run(
        self,
        address: str,
        requests: int,
        concurrency: int,
        connections: int = 1,
        metadata: Sequence[tuple[str, str]] = (),
    ) -> Told:
        """So many requests, `concurrency` of them under way, over `connections`, each
        for A_CONNECTION requests and then another.

        Raises LoadFailed unless every one of them got an HTTP 200.
        """
        most = A_CONNECTION * min(connections, concurrency)
        count = -(-requests // most)
        share = -(-requests // count)
        told = [
            self._once(
                address, min(share, requests - at), concurrency, connections, metadata
            )
            for at in range(0, requests, share)
        ]
        latencies = sorted(itertools.chain(*(each.latencies for each in told)))
        return Told(
            latencies,
            sum(each.seconds for each in told),
            sum(each.data for each in told),
            sum(each.cpu for each in told),
        )

    def _once(
        self,
        address: str,
        requests: int,
        concurrency: int,
        connections: int,
        metadata: Sequence[tuple[str, str]],
    ) -> Told:
        # It divides the streams evenly, and starts no connection without a request.
        streams = max(1, concurrency // connections)
        headers = [*HEADERS, *(f"{key}: {value}" for key, value in metadata)]
        self._log.unlink(missing_ok=True)
        command = [
            *(*self._pinned, PROGRAM, "-t", "1", "-c", str(connections)),
            *("-m", str(streams), "-n", str(requests), "-d", str(self._body)),
            *(part for header in headers for part in ("-H", header)),
            f"--log-file={self._log}",
            f"http://{address}{METHOD}",
        ]
        began, spent = time.perf_counter(), _children()
        try:
            ended = subprocess.run(
                command, capture_output=True, text=True, timeout=LONGEST_S, check=False
            )
        except subprocess.TimeoutExpired:
            raise LoadFailed(f"no end after {LONGEST_S:g} s") from None
        took = time.perf_counter() - began
        return _read(ended, self._log, requests, took, _children() - spent)


def _children() -> float:
    times = os.times()
    return times.children_user + times.children_system


def _read(
    ended: "subprocess.CompletedProcess[str]",
    log: Path,
    requests: int,
    took: float,
    cpu: float,
) -> Told:
    said = ended.stdout
    good = re.search(r"(\d+) succeeded, (\d+) failed, (\d+) errored", said)
    data = re.search(r"\((\d+)\) data", said)
    if ended.returncode or good is None or data is None:
        raise LoadFailed((ended.stderr or said).strip()[-200:] or "it said nothing")
    if good.groups() != (str(requests), "0", "0"):
        raise LoadFailed(f"of {requests} requests: {good.group()}")
    lines = [line.split("\t") for line in log.read_text().splitlines()]
    if len(lines) != requests or any(status != "200" for _, status, _ in lines):
        raise LoadFailed(f"{len(lines)} of {requests} requests are in its log as 200")
    latencies = sorted(int(micros) / 1e6 for _, _, micros in lines)
    return Told(latencies, _finished(said, took), int(data.group(1)), cpu)


def _finished(said: str, took: float) -> float:
    """Seconds by its own clock, without its start-up."""
    found = re.search(r"finished in ([\d.]+)(us|ms|s),", said)
    if found is None:
        return took
    return float(found.group(1)) * {"us": 1e-6, "ms": 1e-3, "s": 1.0}[found.group(2)]
