"""Whose chunks go first; and a whole engine whose prewarm stands back."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest

from loader.threads import to_its_end
from loader.turns import ERRAND, Crew, Errand, Turns


@pytest.fixture
def crew():
    turns = Turns()
    with ThreadPoolExecutor(1) as threads:
        yield Crew(threads, turns), turns


async def errand_of(crew: Crew, errand: Errand, work) -> object:
    ERRAND.set(errand)
    return await to_its_end(crew, work)


async def test_a_chunk_that_nobody_waits_for_waits_for_those_that_are(crew) -> None:
    crew, turns = crew
    urgent, ahead, order = Errand(), Errand(urgent=False), []
    turns.begin(urgent)
    later = asyncio.create_task(errand_of(crew, ahead, lambda: order.append("ahead")))
    await asyncio.sleep(0)
    assert repr(turns) == "<Turns: 1 urgent, 1 put off>"
    await errand_of(crew, urgent, lambda: order.append("urgent"))
    turns.end(urgent)
    await later
    assert order == ["urgent", "ahead"]


async def test_it_goes_at_once_when_nothing_urgent_is_under_way(crew) -> None:
    crew, _ = crew
    assert await errand_of(crew, Errand(urgent=False), lambda: 7) == 7
    assert await to_its_end(crew, lambda: 8) == 8, "work of no errand"


async def test_a_request_that_joins_hurries_it(crew) -> None:
    crew, turns = crew
    urgent, ahead = Errand(), Errand(urgent=False)
    turns.begin(urgent)
    later = asyncio.create_task(errand_of(crew, ahead, lambda: "done"))
    await asyncio.sleep(0)
    turns.hurry(ahead)
    assert await later == "done"
    turns.end(ahead)
    assert repr(turns) == "<Turns: 1 urgent, 0 put off>"


async def test_what_is_called_off_ends_before_its_turn_comes(crew) -> None:
    """Else it would hold its bytes for as long as anything urgent is under way."""
    crew, turns = crew
    turns.begin(Errand())
    ahead, begun = Errand(urgent=False), []
    later = asyncio.create_task(errand_of(crew, ahead, lambda: begun.append(1)))
    await asyncio.sleep(0)
    later.cancel()
    await asyncio.sleep(0)
    assert not later.done(), "a thread might be at work"
    turns.call_off(ahead)
    with pytest.raises(asyncio.CancelledError):
        await later
    assert begun == []
    assert repr(turns) == "<Turns: 1 urgent, 0 put off>"


async def test_a_failure_put_off_is_still_a_failure(crew) -> None:
    crew, turns = crew
    urgent = Errand()
    turns.begin(urgent)

    def fail() -> None:
        raise OSError("no")

    later = asyncio.create_task(errand_of(crew, Errand(urgent=False), fail))
    await asyncio.sleep(0)
    turns.end(urgent)
    with pytest.raises(OSError, match="no"):
        await later
