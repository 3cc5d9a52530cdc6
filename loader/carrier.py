"""Copies between the device and the host tier: who makes them.

Owns: that question, and two answers: threads, and a GPU by itself (runtime/porter/ has
another). Must not: know what is copied.
"""

from collections.abc import Awaitable
from concurrent.futures import Executor
from typing import Protocol

import torch

from loader.threads import begun, to_its_end


class Carrier(Protocol):
    """Copies bytes while the event loop goes on."""

    def carry(self, source: torch.Tensor, target: torch.Tensor) -> Awaitable[None]:
        """To be awaited, whatever happens. It has begun when this returns, where that
        is possible, and is done when it has been awaited: whatever that raises,
        CancelledError too, neither is touched any more."""
        ...


class Threads:
    """The loader's threads."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    def carry(self, source: torch.Tensor, target: torch.Tensor) -> Awaitable[None]:
        """See Carrier."""
        return begun(self._executor, _copy, source, target)


class Streams:
    """A GPU copies from and to pinned memory by itself, in both directions at once. A
    thread is needed only to wait for it, if it is not done by then."""

    def __init__(self, device: torch.device, executor: Executor) -> None:
        self._executor = executor
        self._in = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._out = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def carry(self, source: torch.Tensor, target: torch.Tensor) -> Awaitable[None]:
        """See Carrier."""
        stream = self._in if target.is_cuda else self._out
        with torch.cuda.stream(stream):
            target.copy_(source, non_blocking=True)
        return self._landed(stream.record_event())

    async def _landed(self, done: torch.cuda.Event) -> None:
        try:
            if not done.query():  # type: ignore[no-untyped-call]
                await to_its_end(self._executor, done.synchronize)
        except BaseException:
            # Put off behind loads that are urgent (loader/turns.py), that wait may be
            # cancelled before it began. The GPU copies all the same.
            done.synchronize()
            raise


def _copy(source: torch.Tensor, target: torch.Tensor) -> None:
    target.copy_(source)


def carrier_for(device: torch.device, executor: Executor) -> Carrier:
    """The one that suits the device."""
    return Streams(device, executor) if device.type == "cuda" else Threads(executor)
