"""Work that a device has recorded and plays again: one launch, whatever it is made of.

    Deck   records; `CudaDeck` makes CUDA graphs of what is recorded
    Tape   plays it, over the same memory each time

Owns: the stream that all tapes of a deck run on, one after the other, and the memory
their calls work in, which they share for that reason. Must not: know models, or decide
what is worth recording (runtime/recordings.py).

A CUDA graph remembers addresses. So what a tape reads and writes stays where it is for
as long as the tape lives; whoever records sees to that.
"""

import contextlib
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

import torch

from loader.memory import mapped, pin, unpin

PRIORITY = -1
"""The stream's: a call that was recorded is short and somebody waits for it."""

WARM_UPS = 3
"""Calls before one is recorded: kernels are loaded at their first launch, and libraries
make their handles, neither of which can be recorded."""

SPIN_S = 100e-6
"""A wait this short keeps the thread and the GIL: to be woken takes longer."""

SPINS = 400
"""Looks at an event (half a microsecond each) before such a wait gives up."""

_failed: list[torch.cuda.CUDAGraph] = []
"""Recordings that came to nothing. The host's allocator asks them for as long as there
is a process, in vain, whether an allocation is theirs (see CudaDeck._give_up)."""


class Tape(Protocol):
    """Recorded work."""

    def play(self) -> None:
        """Begin. In the deck's turn."""
        ...

    def wait(self, seconds: float) -> None:
        """Until what was played last is done; about how long that takes."""
        ...


class Deck(Protocol):
    """A device that records."""

    @property
    def turn(self) -> AbstractContextManager[object]:
        """Held while a tape's memory is made ready and it is begun: threads do not come
        between each other."""
        ...

    def host(self, nbytes: int) -> torch.Tensor:
        """Host memory that the device reads and writes by itself. Raises DeviceFull."""
        ...

    def give_back(self, memory: torch.Tensor) -> None:
        """The end of `host`."""
        ...

    def copy(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """After what was played last, before what is played next. In a turn."""
        ...

    def record(self, work: Callable[[], object]) -> Tape:
        """`work`, after it was done some times. Raises RuntimeError for what cannot be
        recorded: work that looks at its own numbers, say."""
        ...


class _Turn:
    """The lock, and the deck's stream for whoever has it. Whatever CUDA says on the way
    in or out, the lock is not left behind: the event loop takes it too.

    The stream is changed as torch.cuda.stream does it, without its checks: they are a
    fifth of a small call.
    """

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._lock = threading.Lock()
        self._ours = stream.stream_id, stream.device_index, stream.device_type
        self._before = self._ours

    def __enter__(self) -> None:
        self._lock.acquire()
        try:
            self._before = torch._C._cuda_getCurrentStream(self._ours[1])
            torch._C._cuda_setStream(*self._ours)
        except BaseException:
            self._lock.release()
            raise

    def __exit__(self, *error: object) -> None:
        try:
            torch._C._cuda_setStream(*self._before)
        finally:
            self._lock.release()


class CudaDeck:
    """See Deck. One a process.

    Two streams of a priority that nobody else here takes. torch has 32 of each, and
    gives them out again and again: work that another thread begins on a stream that
    records becomes part of the recording. (Kernels keep the priority of the stream that
    they were recorded on.)
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device, PRIORITY)  # type: ignore[no-untyped-call]
        self._studio = torch.cuda.Stream(device, PRIORITY)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()
        self._keeper: torch.cuda.CUDAGraph | None = None
        self._nothing = torch.zeros(1, device=device)
        self.turn = _Turn(self._stream)

    def host(self, nbytes: int) -> torch.Tensor:
        """See Deck. Not torch's own pinned memory: its allocator asks the stream when
        a block is free again, which nobody may while it records."""
        memory = mapped(nbytes, faulted=True)
        pin(memory)
        return memory

    def give_back(self, memory: torch.Tensor) -> None:
        """See Deck."""
        with contextlib.suppress(torch.AcceleratorError):  # lost, it writes no more
            self._stream.synchronize()
        unpin(memory)

    def copy(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """See Deck."""
        target.copy_(source, non_blocking=True)

    def record(self, work: Callable[[], object]) -> "CudaTape":
        """See Deck. Only what this thread does is recorded: others use the device, and
        play what was recorded before.

        Warm-ups run where the caller's other work does, never on the stream that
        records: cuBLAS has a workspace for each stream, tapes remember its address, and
        a tape that somebody plays meanwhile would find our numbers in it.
        """
        for _ in range(WARM_UPS):
            work()
        torch.cuda.current_stream(self._device).synchronize()
        if self._keeper is None:
            # torch refuses a pool that every recording has left; this one stays.
            self._keeper = self._recorded(self._nothing.zero_)
        return CudaTape(self._recorded(work), self._stream)

    def _recorded(self, work: Callable[[], object]) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(self._studio):
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                work()
                graph.capture_end()
            except BaseException:
                self._give_up(graph)
                raise
        return graph

    def _give_up(self, graph: torch.cuda.CUDAGraph) -> None:
        """End a recording that failed. CUDA will not end one that it found wanting
        without an error, and torch then tells neither of its allocators that it is
        over (CUDAGraph::capture_end): that of the device would free nothing any more,
        that of the host would ask the dead graph, and none records into that pool."""
        try:
            graph.capture_end()
        except RuntimeError:
            with contextlib.suppress(RuntimeError):  # it may have heard
                torch._C._cuda_endAllocateToPool(self._device.index, self._pool)
            _failed.append(graph)
            self._pool, self._keeper = torch.cuda.graph_pool_handle(), None


class CudaTape:
    """See Tape."""

    def __init__(self, graph: torch.cuda.CUDAGraph, stream: torch.cuda.Stream) -> None:
        self._replay = graph.replay
        self._stream = stream
        self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]

    def play(self) -> None:
        """See Tape."""
        self._replay()
        self._done.record(self._stream)

    def wait(self, seconds: float) -> None:
        """See Tape."""
        if seconds < SPIN_S:
            done = self._done.query
            for _ in range(SPINS):
                if done():  # type: ignore[no-untyped-call]
                    return
        self._done.synchronize()
