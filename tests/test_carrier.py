"""Copies that a GPU makes by itself: a wait may end early, the copy does not."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest

from loader.carrier import Streams
from loader.turns import ERRAND, Crew, Errand, Turns


class Copy:
    """As an event behind it."""

    def __init__(self) -> None:
        self.done = False

    def query(self) -> bool:
        return self.done

    def synchronize(self) -> None:
        self.done = True


@pytest.fixture
def turns():
    return Turns()


@pytest.fixture
def streams(turns):
    with ThreadPoolExecutor(1) as threads:
        streams = Streams.__new__(Streams)  # without a device there are no streams
        streams._executor = Crew(threads, turns)
        yield streams


async def test_a_wait_that_is_called_off_ends_with_the_copy(streams, turns) -> None:
    """Put off behind urgent loads it has not begun, and is cancelled at once; whoever
    awaits it frees the block that the GPU still writes to."""
    turns.begin(Errand())
    errand, copy = Errand(urgent=False), Copy()
    ERRAND.set(errand)
    waiting = asyncio.create_task(streams._landed(copy))
    await asyncio.sleep(0)
    turns.call_off(errand)
    waiting.cancel()
    await asyncio.wait((waiting,))
    assert waiting.cancelled()
    assert copy.done


async def test_what_is_done_is_not_waited_for(streams, turns) -> None:
    turns.begin(Errand())
    ERRAND.set(Errand(urgent=False))
    copy = Copy()
    copy.done = True
    landing = streams._landed(copy)
    with pytest.raises(StopIteration):  # at its first step: no lap of the loop
        landing.send(None)
