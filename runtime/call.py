"""What a service method may know of the call it answers.

Owns: that one Protocol, and the way from it to a deadline. Must not: know which front
end the call came through; grpc.aio's context satisfies it, and so will others.
"""

import asyncio
from typing import Protocol


class Call(Protocol):
    """One RPC, seen from the service."""

    def time_remaining(self) -> float | None:
        """Seconds until the caller gives up; None if it set no deadline."""
        ...


def deadline_of(call: Call) -> float | None:
    """The call's deadline on the event loop's clock, as the engine wants it."""
    remaining = call.time_remaining()
    if remaining is None:
        return None
    return asyncio.get_running_loop().time() + remaining
