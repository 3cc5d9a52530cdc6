"""The drift of `bench.vram`: what the device is short of after many swaps.

Owns: the swaps, through the whole engine, and the gauge's readings between them. Must
not: judge them.

A fleet of MLPs, the budget has room for half, and models are asked at random, so every
second request loads one and evicts others. The readings are of the whole device: while
this runs, nobody else should use it.
"""

import asyncio
import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.progress import Progress

from bench.storm import packed
from bench.traffic import Stored, request
from runtime.compose import composed
from runtime.counts import Counts
from runtime.engine import Engine
from runtime.sources import load
from runtime.vram import Gauge, open_gauge
from runtime.wire import decode

WIDTHS = (1024, 1448, 2048, 2896)
"""4 to 34 MB a model."""
QUICK_WIDTHS = (512, 724, 1024)
SHARE = 0.5
CALLERS = 4
"""More than the lanes of a GPU: all of them have their workspaces before it counts."""
LOOK = 20
"""Requests between two readings."""
WARM_UP = 5
"""Requests a model before it counts: kernels are loaded, calls recorded."""


@dataclass(slots=True)
class Swapped:
    """What was done, and the device's used bytes, as (swaps, bytes)."""

    gauge: str
    budget: int
    readings: list[tuple[int, int]] = field(default_factory=list)
    ours: list[int] = field(default_factory=list)
    """Bytes of torch's allocator at each reading; on a CPU what the models hold."""

    @property
    def swaps(self) -> int:
        """Loads after the warm-up; each of them evicts what is in its way."""
        return self.readings[-1][0]

    @property
    def drift(self) -> float:
        """The change of used bytes from the first reading to the last, as a share of
        the budget, whichever way it went."""
        return abs(self.readings[-1][1] - self.readings[0][1]) / self.budget

    def shown(self) -> dict[str, object]:
        """For the JSON."""
        return {
            "gauge": self.gauge,
            "budget": self.budget,
            "readings": self.readings,
            "ours": self.ours,
        }


@dataclass(frozen=True, slots=True)
class Wanted:
    """How many swaps, of how many models, within how many seconds."""

    swaps: int
    models: int
    widths: Sequence[int]
    seconds: float


async def swapped(
    folder: Path, device: torch.device, wanted: Wanted, progress: Progress
) -> Swapped:
    """The swaps that are wanted, or as many as there is time for."""
    fleet = await asyncio.to_thread(
        packed, folder, wanted.models, wanted.widths, progress
    )
    budget = int(sum(model.nbytes for model in fleet) * SHARE)
    flags = {"store": str(folder), "device": str(device), "budget": str(budget)}
    bar = progress.add_task("swaps", total=wanted.swaps)
    async with composed(load(flags, None, {}), Counts()) as engine:
        held = 0

        def ours() -> int:
            return held

        gauge = open_gauge(device, os.environ, ours if device.type == "cpu" else None)
        seen = Swapped(type(gauge).__name__, budget)
        stream = random.Random(0)
        await asked(engine, fleet, stream, WARM_UP * wanted.models)
        start = (await engine.snapshot()).loads
        until = time.monotonic() + wanted.seconds
        look(gauge, seen, 0)
        while seen.swaps < wanted.swaps and time.monotonic() < until:
            await asked(engine, fleet, stream, LOOK)
            snapshot = await engine.snapshot()
            held = snapshot.held
            look(gauge, seen, snapshot.loads - start)
            progress.update(bar, completed=seen.swaps)
        gauge.close()
    return seen


def look(gauge: Gauge, seen: Swapped, swaps: int) -> None:
    """A reading; between requests, so nothing is on its way."""
    reading = gauge.read()
    seen.readings.append((swaps, reading.used))
    seen.ours.append(reading.ours)


async def asked(
    engine: Engine, fleet: Sequence[Stored], stream: random.Random, count: int
) -> None:
    """So many requests, some at a time."""
    names = iter(stream.choices([model.name for model in fleet], k=count))

    async def caller(next_one: Callable[[], str | None]) -> None:
        while name := next_one():
            await engine.predict(decode(request(name)))

    async with asyncio.TaskGroup() as group:
        for _ in range(CALLERS):
            group.create_task(caller(lambda: next(names, None)))
