"""Whether there may be a porter, and what it is told when it begins.

Owns: both, read from the settings. Must not: start it.
"""

import os
import sys

import torch

from loader.quota import cores
from loader.store import Store
from runtime.config import Settings
from runtime.porter.messages import Begin


def unfit(settings: Settings, store: Store, device: torch.device) -> str:
    """Why loads stay in threads; empty if they need not."""
    if settings.loader == "threads":
        return "as asked"
    if sys.platform != "linux":
        return "it takes Linux"
    if device.type != "cpu":
        return "it writes where a CPU can, not to a GPU"
    # A class of the script that is run cannot be found from another process.
    if not store.url or type(store).__module__ == "__main__":
        return "no other process can open this store"
    if settings.loader == "auto" and cores() < 2:
        return "there is one core"
    return ""


def begin(settings: Settings, store: Store) -> Begin:
    """Its first order."""
    kind = type(store)
    return Begin(
        f"{kind.__module__}:{kind.__qualname__}",
        os.fsencode(store.url),
        os.fsencode(settings.disk_cache),
        settings.disk_cache_size,
        settings.concurrent_loads,
        (settings.log_format, settings.log_level),
    )
