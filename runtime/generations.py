"""Generations: a model whose manifest changed in the store while it is served.

Owns: that the new generation is in before the old one is let go, and the letting go.
Must not: read the store (runtime/catalog.py, which asks here what to believe).
"""

import asyncio
from typing import Generic

import structlog

from loader.errors import LoadFailed
from loader.manifest import ModelSpec
from runtime.cache import ModelCache
from runtime.errors import NoRoom, Refused, TooLarge
from runtime.residency import M

log = structlog.get_logger()


class Generations(Generic[M]):
    """Of the models of one cache."""

    def __init__(self, cache: ModelCache[M]) -> None:
        self._cache = cache
        self._retiring: set[asyncio.Task[None]] = set()

    async def replaced(self, old: ModelSpec, new: ModelSpec) -> bool:
        """A manifest changed in the store: bring the new generation in before the old
        one is let go, so that a broken upload never takes a serving model down. False:
        stay with the old one."""
        if old.key not in self._cache.residencies:
            return True
        try:
            async with self._cache.lease(new):
                pass
        except (NoRoom, TooLarge):
            await self._cache.unload(old.key)  # both at once do not fit: old one first
            return True
        except (LoadFailed, Refused) as error:
            log.warning("new generation refused", model=new.name, reason=error.message)
            return False
        task = asyncio.get_running_loop().create_task(self._cache.unload(old.key))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)
        return True

    async def over(self) -> None:
        """Until no old generation is on its way out."""
        if self._retiring:
            await asyncio.wait(self._retiring)
