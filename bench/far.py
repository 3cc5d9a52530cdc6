"""A folder that answers as late as a store far away.

Owns: the delay. Must not: be a part of a command: a porter (runtime/porter/) finds this
class by its module.
"""

import asyncio

from loader.store import Part, Store


class Far(Store):
    """A folder that answers as late as a store far away."""

    delay = 0.03

    def local(self, path: str) -> None:
        """See Store: nobody opens what is far away."""

    async def small(self, path: str, limit: int = 32 << 20) -> bytes:
        """See Store."""
        await asyncio.sleep(self.delay)
        return await super().small(path, limit)

    async def part(
        self, path: str, start: int, end: int, etag: str | None = None
    ) -> Part:
        """See Store."""
        await asyncio.sleep(self.delay)
        return await super().part(path, start, end, etag)
