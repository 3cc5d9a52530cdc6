"""Recordings on a real device, and what torch makes of those that fail."""

import pytest
import torch

from loader.tape import CudaDeck

pytestmark = pytest.mark.gpu
DEVICE = "cuda:0"


@pytest.fixture
def deck():
    return CudaDeck(torch.device(DEVICE))


def played(deck: CudaDeck, x: torch.Tensor) -> torch.Tensor:
    """Three times `x`, from a recording."""
    y = torch.zeros_like(x)
    tape = deck.record(lambda: y.copy_(x * 3))
    with deck.turn:
        tape.play()
    tape.wait(0.0)
    return y


def test_after_one_that_failed_others_are_recorded(deck) -> None:
    x = torch.ones(4, device=DEVICE)
    assert played(deck, x).tolist() == [3.0] * 4
    for _ in range(3):
        with pytest.raises(RuntimeError):
            deck.record(lambda: x.sum().item())
        assert played(deck, x).tolist() == [3.0] * 4


def test_after_one_that_failed_memory_goes_back(deck) -> None:
    x = torch.ones(4, device=DEVICE)
    with pytest.raises(RuntimeError):
        deck.record(lambda: x.sum().item())
    hog = torch.empty(256 << 20, dtype=torch.uint8, device=DEVICE)
    del hog
    before = torch.cuda.memory_reserved()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() <= before - (256 << 20)


def test_when_all_have_left_others_are_recorded(deck) -> None:
    """A first trial that does not pay leaves nobody in the pool."""
    x = torch.ones(4, device=DEVICE)
    for _ in range(3):
        assert played(deck, x).tolist() == [3.0] * 4


def test_kernels_keep_the_stream_s_priority(deck) -> None:
    assert deck._studio.priority == deck._stream.priority == -1
    assert deck._studio != deck._stream
