"""Lanes: the threads that run models on the device.

Owns: the threads, a CUDA stream each, and what happens when the device is lost. Must
not: queue (runtime/batch.py decides what runs next) or touch the cache.

A forward that has begun is always waited for, whatever becomes of its request: the
weights it reads must not go away under it (trap 4 of runtime/cache.py).
"""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar, TypeVarTuple, Unpack, cast

import structlog
import torch
from torch._C import _InferenceMode

from loader.errors import DeviceLost

log = structlog.get_logger()
T = TypeVar("T")
Ts = TypeVarTuple("Ts")


def keep_to_share() -> None:
    """What a thread that runs forwards does first: have no more threads for a call than
    torch was told of (`torch.set_num_threads`, runtime/devices.py).

    OpenMP has that number for each thread apart. torch sets it where one of its own
    loops asks for it, but a matrix goes to MKL or oneDNN without, which then takes
    every core, beside the lanes that have them.
    """
    torch.set_num_threads(torch.get_num_threads())


class Lanes:
    """`count` threads on one device; `free` of them idle."""

    def __init__(
        self,
        device: torch.device,
        count: int,
        on_lost: Callable[[], None] = lambda: None,
    ) -> None:
        self.device = device
        self.count = count
        self.free = count
        self.inline = device.type == "cpu"
        """True if calls may run on the event loop; on a GPU they would wait there, but
        for those that are played from a recording (runtime/recordings.py)."""
        self._on_lost = on_lost
        self._began: dict[asyncio.Future[object], float] = {}
        self._stream = threading.local()
        self._pool = ThreadPoolExecutor(count, "lane", keep_to_share)

    def start(self, forward: Callable[[], T]) -> "asyncio.Future[T]":
        """Run `forward` in a free lane; the future is set on the event loop.

        The caller has seen `free` > 0. The future cannot be cancelled into leaving:
        nobody awaits it bare, `runtime/batch.py` reads it in a callback.
        """
        if self.free <= 0:
            raise AssertionError("A forward without a free lane. This is a bug.")
        self.free -= 1
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(self._pool, self._run, forward)
        self._began[cast("asyncio.Future[object]", future)] = loop.time()
        future.add_done_callback(self._freed)
        return future

    def longest(self) -> float:
        """Seconds that the oldest forward in a lane has been running."""
        first = next(iter(self._began.values()), None)
        return 0.0 if first is None else asyncio.get_running_loop().time() - first

    @property
    def idle(self) -> bool:
        """True if no lane runs anything: who waits for the device waits for nobody."""
        return self.free == self.count

    def run_here(self, forward: Callable[[Unpack[Ts]], T], *args: *Ts) -> T:
        """Run a call that is known to be short on the calling thread."""
        # What torch.inference_mode is made of, at a fifth of its cost (2.8 us).
        mode = _InferenceMode(True)
        try:
            return forward(*args)
        except torch.AcceleratorError as error:
            lost = _lost(error)
            self._on_lost()
            raise lost from error
        finally:
            del mode

    def _freed(self, future: "asyncio.Future[T]") -> None:
        self.free += 1
        del self._began[cast("asyncio.Future[object]", future)]
        if not future.cancelled() and isinstance(future.exception(), DeviceLost):
            self._on_lost()

    def _run(self, forward: Callable[[], T]) -> T:
        with torch.inference_mode():
            if self.device.type != "cuda":
                return forward()
            try:
                with torch.cuda.stream(self._own_stream()):
                    result = forward()
                    torch.cuda.current_stream(self.device).synchronize()
                    return result
            except torch.OutOfMemoryError:
                raise
            except torch.AcceleratorError as error:
                raise _lost(error) from error

    def _own_stream(self) -> torch.cuda.Stream:
        stream: torch.cuda.Stream | None = getattr(self._stream, "own", None)
        if stream is None:
            stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
            self._stream.own = stream
        return stream

    def close(self) -> None:
        """End the threads; returns when they have, and the device has back what cuBLAS
        took for their streams."""
        self._pool.shutdown(wait=True)
        if self.device.type == "cuda":
            torch._C._cuda_clearCublasWorkspaces()


def _lost(error: torch.AcceleratorError) -> DeviceLost:
    """Sticky: every later call of this process fails as well (CUDA manual,
    cudaErrorAssert 710, cudaErrorIllegalAddress 700, LaunchFailure 719)."""
    log.critical("device lost", exc_info=error)
    return DeviceLost("the device was lost; the server restarts")
