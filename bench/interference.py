"""What loads cost a model that is resident: the second half of bench/storm.py.

Owns: the measuring. Must not: judge it.
"""

import asyncio
import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.reader import reader
from bench.traffic import request
from runtime.wire import decode

if TYPE_CHECKING:
    from bench.storm import Plan

RATE_S = 0.005
"""Between two requests for the model that must not be disturbed."""

TURN_S = 0.5
CALLERS = 2


@dataclass(frozen=True, slots=True)
class Disturbed:
    """Seconds of a resident model's requests: alone, among loads, and beside a stranger
    that only reads and hashes; how many loads went on, and files were read, meanwhile.
    """

    alone: list[float]
    among: list[float]
    beside: list[float]
    loads: int
    read: int


async def interference(plan: "Plan", turns: int) -> Disturbed:
    """A resident model's requests, in turns alone, among loads, beside the stranger."""
    hot, *others = sorted(plan.fleet, key=lambda model: model.nbytes)
    chance, asked = random.Random(1), decode(request(hot.name))
    alone, among, beside, files = list[float](), list[float](), list[float](), 0

    async def steady(into: list[float]) -> None:
        until = time.perf_counter() + TURN_S
        while time.perf_counter() < until:
            began = time.perf_counter()
            await engine.predict(asked)
            into.append(time.perf_counter() - began)
            await asyncio.sleep(RATE_S)

    async def load_others(enough: asyncio.Event) -> None:
        while not enough.is_set():
            await engine.load(chance.choice(others).name)

    weights = [*(plan.folder / "store").glob("*/*/model.safetensors")]
    async with plan.engine("other-disk") as engine, reader(weights) as read:
        # A server that has been up: all are known to it, and it has its porter.
        for model in others:
            await engine.load(model.name)
        await engine.predict(asked)
        for _ in range(turns):
            await steady(alone)
            enough = asyncio.Event()
            loading = [asyncio.create_task(load_others(enough)) for _ in range(CALLERS)]
            await steady(among)
            enough.set()
            await asyncio.gather(*loading)
            reading = asyncio.ensure_future(read(TURN_S))
            await steady(beside)
            files += await reading
        loads = (await engine.snapshot()).loads
    return Disturbed(alone, among, beside, loads, files)
