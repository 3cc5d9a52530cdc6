"""The course of bench.soak: requests at a steady rate, and looks at the servers.

Owns: when a request is sent and when a server is looked at, and what was seen. Must
not: know a kind of request (bench/soak_traffic.py), or judge (bench/soak_results.py).

Arrivals are a Poisson process: they do not wait for answers, but no more than
UNDER_WAY are under way at a time, so a server that hangs is not buried.
"""

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from bench.busy import load
from bench.process import Server
from bench.soak_traffic import Line, Told

UNDER_WAY = 64
MIB = 1024.0
"""The kernel counts in KiB."""


@dataclass(frozen=True, slots=True)
class Look:
    """A server's tree of processes at one moment; memory in MiB.

    `own` is what is not a file's: heaps and shared memory. Pages of libraries are
    shared with whoever else runs the same ones, so what `pss` holds of them moves when
    strangers come and go.
    """

    at: float
    pss: float
    own: float
    descriptors: int
    threads: int
    cpu_s: float
    load: float


@dataclass(frozen=True, slots=True)
class Seen:
    """A right answer to a plain request: when it was sent, how long it took, and how
    it met its model."""

    at: float
    seconds: float
    met: str


@dataclass(slots=True)
class Course:
    """All that one server did."""

    name: str
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By kind and outcome."""
    codes: Counter[str] = field(default_factory=Counter)
    """What was said instead, of what was lost or strange."""
    seen: list[Seen] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)
    loads: int = 0
    evictions: int = 0
    complaints: Counter[str] = field(default_factory=Counter)
    """Errors in the server's own log, by event."""
    exit_code: int = 0

    def add(self, kind: str, told: Told, at: float, seconds: float) -> None:
        """A request that has ended."""
        self.counts[kind, told.outcome] += 1
        if told.code:
            self.codes[f"{kind}: {told.code}"] += 1
        if kind == "plain" and told.outcome == "right":
            self.seen.append(Seen(at, seconds, told.met))


def look(pid: int, at: float) -> Look:
    """At a process and its descendants."""
    root = psutil.Process(pid)  # there until it is waited for, dead or alive
    pss = own = cpu = 0.0
    descriptors = threads = 0
    for process in (root, *root.children(recursive=True)):
        # One that ends while it is looked at is none of the tree's any more; a server
        # that has ended looks like nothing, and its callers tell the rest.
        with contextlib.suppress(psutil.Error, OSError):
            memory = memory_of(Path(f"/proc/{process.pid}/smaps_rollup").read_text())
            pss += memory["Pss"] / MIB
            own += (memory["Pss_Anon"] + memory["Pss_Shmem"]) / MIB
            descriptors += process.num_fds()
            threads += process.num_threads()
            times = process.cpu_times()
            cpu += times.user + times.system
    return Look(at, pss, own, descriptors, threads, cpu, load())


def memory_of(rollup: str) -> dict[str, int]:
    """The numbers of /proc/PID/smaps_rollup, in KiB, by name."""
    rows = (line.split() for line in rollup.splitlines() if line.endswith("kB"))
    return {row[0].rstrip(":"): int(row[1]) for row in rows}


class Soak:
    """One server under its traffic. `at` is in seconds from the begin."""

    def __init__(self, line: Line, course: Course, seconds: float, began: float):
        self._line = line
        self._course = course
        self._seconds = seconds
        self._began = began
        self._room = asyncio.Semaphore(UNDER_WAY)

    def _now(self) -> float:
        return time.perf_counter() - self._began

    async def send(self, rate: float, seed: int) -> None:
        """Requests until the time is over; returns when all have ended."""
        chance, due = random.Random(seed), self._now()
        async with asyncio.TaskGroup() as group:
            while due < self._seconds:
                await asyncio.sleep(due - self._now())
                await self._room.acquire()
                group.create_task(self._one(self._line.kind()))
                # A machine that stood still has no backlog to make good.
                due = max(due, self._now() - 1.0) + chance.expovariate(rate)

    async def _one(self, kind: str) -> None:
        began = self._now()
        try:
            told = await self._line.run(kind)
        except Exception as error:  # noqa: BLE001 - no single call ends an hour
            told = Told("strange", code=repr(error))
        finally:
            self._room.release()
        self._course.add(kind, told, began, self._now() - began)

    async def watch(
        self, server: Server, every: float, told: Callable[[float], object]
    ) -> None:
        """Look at the server now and then, beside the loop that asks it."""
        while (now := self._now()) < self._seconds:
            found = await asyncio.to_thread(look, server.pid, now)
            self._course.looks.append(found)
            told(now)
            await asyncio.sleep(now + every - self._now())


async def run(
    server: Server,
    line: Line,
    course: Course,
    pace: tuple[float, float, float],
    told: Callable[[float], object],
) -> None:
    """The whole of it, for one server. `pace`: seconds in all, requests a second,
    seconds from look to look."""
    seconds, rate, every = pace
    soak = Soak(line, course, seconds, time.perf_counter())
    async with asyncio.TaskGroup() as group:
        group.create_task(soak.watch(server, every, told))
        group.create_task(soak.send(rate, seed=0))
    await line.aclose()
