"""How much of the device is ours, from the first reading of the gauge to the last.

Owns: that the ledger's capacity is what the gauge says, for as long as a block runs.
Must not: measure (runtime/vram.py) or do the sums (runtime/budget.py).
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import torch

from eviction.ledger import Ledger
from loader.load import Loader
from loader.model import Model
from runtime.budget import Tide
from runtime.cache import ModelCache
from runtime.config import Settings
from runtime.devices import share_of
from runtime.inventory import Inventory
from runtime.vram import Gauge, Reading, open_gauge
from runtime.watch import Share, watch


@dataclass(frozen=True, slots=True)
class Level:
    """How much of the device is ours: who measures it, what we may have of it."""

    gauge: Gauge
    share: Share
    tide: Tide
    first: Reading

    @property
    def at_best(self) -> int:
        """The most that models may ever hold here."""
        return self.share.at_best(self.first)


@contextlib.contextmanager
def measured(
    settings: Settings, device: torch.device, loader: Loader, ledger: Ledger
) -> Iterator[Level]:
    """The gauge, read once: the ledger has its first capacity from it."""
    arena = loader.slabs.arena
    # What was touched of the arena is this process' own, held or free again.
    ours = (lambda: arena.touched) if device.type == "cpu" else None
    with contextlib.closing(open_gauge(device, os.environ, ours)) as gauge:
        first = gauge.read()
        level = Level(gauge, share_of(settings, first, device), Tide(), first)
        began = asyncio.get_running_loop().time()
        ledger.resize(level.tide.told(began, level.share.now(first)))
        yield level


@contextlib.asynccontextmanager
async def watched(
    settings: Settings,
    level: Level,
    cache: ModelCache[Model],
    inventory: Inventory[Model],
    loader: Loader,
) -> AsyncIterator[None]:
    """While the block runs, the ledger's capacity follows the gauge."""
    watching = asyncio.create_task(
        watch(
            level.gauge,
            level.share,
            level.tide,
            cache,
            inventory,
            settings.gauge_interval,
            loader.slabs.shrink,
        )
    )
    try:
        yield
    finally:
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching
