"""The watch: what the gauge reads becomes the ledger's capacity.

Owns: the one loop that reads the gauge. Must not: evict (the cache sees to that when
its capacity shrinks) or be asked on a request's way.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from loader.load import Model
from runtime.budget import Budget, Tide, capacity
from runtime.cache import ModelCache
from runtime.inventory import Inventory
from runtime.vram import Gauge, Reading


@dataclass(frozen=True, slots=True)
class Share:
    """What of the device is ours: the configured budget, less what must stay free."""

    budget: Budget
    reserve: int

    def at_best(self, reading: Reading) -> int:
        """The most that models may ever hold here: nobody else on the device."""
        return max(0, min(self.budget.of(reading.total), reading.total - self.reserve))

    def now(self, reading: Reading) -> int:
        """What models may hold as things stand."""
        return capacity(self.budget, reading, self.reserve)


async def watch(
    gauge: Gauge,
    share: Share,
    tide: Tide,
    cache: ModelCache[Model],
    inventory: Inventory[Model],
    interval: float,
    shrink: Callable[[], None] = lambda: None,
) -> None:
    """Read every `interval` seconds, until cancelled. `shrink`: gives back memory that
    is empty and has become too much; what has yet to be evicted follows by itself."""
    clock = asyncio.get_running_loop().time
    while True:
        await asyncio.sleep(interval)
        reading = await asyncio.to_thread(gauge.read)
        inventory.measured, inventory.gauge_up = reading.used, gauge.healthy
        level = tide.told(clock(), share.now(reading))
        if level != cache.ledger.capacity:
            cache.resize(level)
            shrink()
