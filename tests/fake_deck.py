"""A deck on the CPU: what was recorded is done again, over the same memory.

As on a GPU, addresses are all that a tape knows: nothing that its work was given is
looked at anew, and work that needs to see its own numbers cannot be recorded.
"""

import threading
from collections.abc import Callable
from contextlib import contextmanager

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class LooksAtNumbers(TorchDispatchMode):
    """Raises for what a stream cannot record."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten._local_scalar_dense.default,):
            raise RuntimeError("operation not permitted when stream is capturing")
        return func(*args, **(kwargs or {}))


class FakeTape:
    def __init__(self, work: Callable[[], object], deck: "FakeDeck") -> None:
        self._work = work
        self._deck = deck

    def play(self) -> None:
        assert self._deck.in_turn == threading.get_ident()
        if self._deck.trouble:
            raise self._deck.trouble.pop(0)
        self._deck.played += 1
        with torch.inference_mode():
            self._work()

    def wait(self, seconds: float) -> None:
        self._deck.waiting()


class FakeDeck:
    """`waiting` is called by whoever waits for a tape."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.in_turn = 0
        self.played = 0
        self.lent = 0
        self.copies = 0
        self.trouble: list[Exception] = []
        self.waiting: Callable[[], None] = lambda: None

    @property
    @contextmanager
    def turn(self):
        with self._lock:
            self.in_turn = threading.get_ident()
            try:
                yield
            finally:
                self.in_turn = 0

    def host(self, nbytes: int) -> torch.Tensor:
        self.lent += 1
        return torch.zeros(nbytes, dtype=torch.uint8)

    def give_back(self, memory: torch.Tensor) -> None:
        self.lent -= 1

    def copy(self, source: torch.Tensor, target: torch.Tensor) -> None:
        assert self.in_turn == threading.get_ident()
        self.copies += 1
        target.copy_(source)

    def record(self, work: Callable[[], object]) -> FakeTape:
        with LooksAtNumbers():
            work()
        return FakeTape(work, self)
