"""What a deck asks of CUDA, in which order: a stand-in for torch.cuda writes it down.

That what is recorded is right is for tests/gpu; what torch does not tell its allocators
after a failure, and in which stream warm-ups run, is not seen there either.
"""

import contextlib
from types import SimpleNamespace

import pytest
import torch

from loader.memory import CudaMemory
from loader.tape import WARM_UPS, CudaDeck

DEVICE = torch.device("cuda:0")


class Cuda:
    """`current`: the stream; `log`: what was asked. `spoilt`: a recording that CUDA
    found wanting, which ends with an error."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.streams: list[int] = []
        self.current = "default"
        self.spoilt = False
        self.pools = 0

    def Stream(self, device, priority=0):
        self.streams.append(priority)
        name = f"stream {len(self.streams)}"
        return SimpleNamespace(
            name=name, synchronize=lambda: None,
            stream_id=len(self.streams), device_index=0, device_type=1,
        )  # fmt: skip

    def current_stream(self, device=None):
        return SimpleNamespace(
            synchronize=lambda: self.log.append(f"{self.current} is done")
        )

    @contextlib.contextmanager
    def stream(self, stream):
        before, self.current = self.current, stream.name
        try:
            yield
        finally:
            self.current = before

    def graph_pool_handle(self):
        self.pools += 1
        return 0, self.pools

    def CUDAGraph(self):
        return Graph(self)

    def Event(self):
        return SimpleNamespace()


class Graph:
    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self.pool = None

    def replay(self) -> None: ...

    def capture_begin(self, pool, capture_error_mode) -> None:
        self._cuda.log.append(f"{self._cuda.current} records into {pool}")
        self.pool = pool

    def capture_end(self) -> None:
        if self._cuda.spoilt:
            self._cuda.spoilt = False
            raise RuntimeError("operation failed due to a previous error")
        self._cuda.log.append("ended")


@pytest.fixture
def cuda(monkeypatch):
    cuda = Cuda()
    for name in (
        *("Stream", "current_stream", "stream", "graph_pool_handle"),
        *("CUDAGraph", "Event"),
    ):
        monkeypatch.setattr(torch.cuda, name, getattr(cuda, name))
    monkeypatch.setattr(
        torch._C, "_cuda_endAllocateToPool",
        lambda device, pool: cuda.log.append(f"{pool} freed from {device}"),
        raising=False,
    )  # fmt: skip
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *a, device=None, **k: zeros(*a, **k))
    return cuda


@pytest.fixture
def failed(monkeypatch):
    failed: list[Graph] = []
    monkeypatch.setattr("loader.tape._failed", failed)
    return failed


def test_warm_ups_run_on_no_stream_of_the_deck(cuda) -> None:
    """A tape remembers the cuBLAS workspace of the stream that it was recorded on: what
    else runs there writes into the sums of one that is played meanwhile."""
    deck, where = CudaDeck(DEVICE), []
    deck.record(lambda: where.append(cuda.current))
    assert where == ["default"] * WARM_UPS + ["stream 2"]
    assert cuda.streams == [-1, -1], "of a priority that lanes and loads do not take"


def test_the_pool_is_never_left_by_all_recordings(cuda) -> None:
    """torch asserts that somebody is in it, or makes a new one only if it never was."""
    deck = CudaDeck(DEVICE)
    deck.record(lambda: None)
    deck.record(lambda: None)
    assert deck._keeper is not None
    assert [line for line in cuda.log if "records" in line] == [
        "stream 2 records into (0, 1)"
    ] * 3


def test_a_recording_that_fails_leaves_the_allocators_as_they_were(
    cuda, failed
) -> None:
    deck = CudaDeck(DEVICE)
    deck.record(lambda: None)
    cuda.log.clear()

    def looks() -> None:
        if cuda.current != "default":
            cuda.spoilt = True
            raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.raises(RuntimeError, match="not permitted"):
        deck.record(looks)
    assert cuda.log[1:] == [
        "stream 2 records into (0, 1)",
        "(0, 1) freed from 0",
    ]
    assert len(failed) == 1, "the host's allocator may still ask it"
    cuda.log.clear()
    deck.record(lambda: None)
    assert [line for line in cuda.log if "records" in line] == [
        "stream 2 records into (0, 2)"  # its keeper, and it
    ] * 2


def test_an_error_of_the_work_itself_ends_the_recording(cuda, failed) -> None:
    deck = CudaDeck(DEVICE)

    def refuses() -> None:
        if cuda.current != "default":
            raise ValueError("planted")

    with pytest.raises(ValueError, match="planted"):
        deck.record(refuses)
    assert cuda.log[-1] == "ended"
    assert not failed


def test_a_turn_that_fails_leaves_no_lock(cuda, monkeypatch) -> None:
    deck = CudaDeck(DEVICE)

    def lost(*error) -> None:
        raise RuntimeError("the device is lost")

    def first(*way) -> None:
        if not entered:
            entered.append(way)
        else:
            lost()

    entered: list[object] = []
    monkeypatch.setattr(torch._C, "_cuda_getCurrentStream", lost, raising=False)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="lost"), deck.turn:
            pass
    monkeypatch.setattr(
        torch._C, "_cuda_getCurrentStream", lambda device: (0, 0, 1), raising=False
    )
    monkeypatch.setattr(torch._C, "_cuda_setStream", first, raising=False)
    for _ in range(2):
        entered.clear()
        with pytest.raises(RuntimeError, match="lost"), deck.turn:
            pass
        assert entered == [(1, 0, 1)]


def test_memory_goes_back_though_the_device_is_lost(cuda, monkeypatch) -> None:
    deck, unpinned = CudaDeck(DEVICE), []

    def lost() -> None:
        raise torch.AcceleratorError("planted")

    deck._stream.synchronize = lost
    monkeypatch.setattr("loader.tape.unpin", unpinned.append)
    deck.give_back("memory")
    assert unpinned == ["memory"]


def test_a_lost_device_is_no_error_of_who_gives_its_memory_back(monkeypatch) -> None:
    """It would be the process' end, in place of exit code 70."""

    asked = []

    def lost() -> None:
        asked.append(True)
        raise torch.AcceleratorError("planted")

    monkeypatch.setattr(torch.cuda, "empty_cache", lost)
    CudaMemory(DEVICE).gave_back()
    assert asked == [True]
