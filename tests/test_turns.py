"""What comes in one turn of the loop is one call; nobody is starved, nobody late."""

import asyncio
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from runtime import batch
from runtime.batch import Batcher
from runtime.company import LONELY, LOOK_EVERY, Company
from runtime.errors import DeadlinePassed
from runtime.lanes import Lanes
from runtime.pace import SEEN, Pace
from tests.test_batch import CPU, Doubler, ask, held_up, row, run


@pytest.fixture
async def bench():
    lanes, log, told = Lanes(CPU, 1), [], []
    batcher = Batcher(lanes, lambda *ended: told.append(ended), max_queued=1000)
    yield SimpleNamespace(lanes=lanes, batcher=batcher, log=log, told=told)
    lanes.close()


def short(bench, model: Doubler, *rows: int) -> None:
    """Calls of so many rows have shown to be short."""
    for count in rows:
        for _ in range(SEEN):
            bench.batcher._ways._pace.told(model.graph.digest, ((2,),), count, 1e-6)


def in_company(bench) -> None:
    bench.batcher._company.expected = True


async def test_a_turn_is_a_call_and_each_gets_its_own_rows(bench) -> None:
    model = Doubler("m", bench.log)
    short(bench, model, 8)
    in_company(bench)
    tasks = [asyncio.create_task(run(bench, model, v, rows=2)) for v in (1, 2, 3, 4)]
    assert await asyncio.gather(*tasks) == [[2.0] * 2, [4.0] * 2, [6.0] * 2, [8.0] * 2]
    assert [len(values) for _, values in bench.log] == [8]
    ((_, waits, rows, _),) = bench.told
    assert (len(waits), rows) == (4, 8)
    assert bench.batcher.queued == 0


async def test_two_turns_are_two_calls(bench) -> None:
    model = Doubler("m", bench.log)
    short(bench, model, 1, 2)
    in_company(bench)
    assert await asyncio.gather(*ask(bench, model, 1, 2)) == [[2.0], [4.0]]
    assert await asyncio.gather(*ask(bench, model, 3)) == [[6.0]]
    assert [values for _, values in bench.log] == [[1.0, 2.0], [3.0]]


async def test_requests_of_two_shapes_share_two_calls(bench) -> None:
    """One request of another shape in the middle cuts no batch in two."""
    model, first = await held_up(bench)
    wide = asyncio.create_task(bench.batcher.run(model, row(7, width=5)))
    one, two = ask(bench, model, 1, 2)
    other = asyncio.create_task(bench.batcher.run(model, row(8, width=5)))
    await asyncio.sleep(0)
    model.gate.set()
    await asyncio.gather(first, one, two)
    assert (await wide)[0].array.shape == (await other)[0].array.shape == (1, 5)
    assert bench.log == [("m", [0.0]), ("m", [7.0, 8.0]), ("m", [1.0, 2.0])]


async def test_a_short_model_does_not_wait_for_a_lane(bench) -> None:
    slow, first = await held_up(bench, "slow")
    quick = Doubler("quick", bench.log)
    short(bench, quick, 1)
    (waits,) = ask(bench, Doubler("other", bench.log), 5)
    await asyncio.sleep(0)
    assert await run(bench, quick, 3) == [6.0]
    assert not waits.done()
    assert bench.log == [("quick", [3.0])]
    slow.gate.set()
    assert await asyncio.gather(first, waits) == [[0.0], [10.0]]


async def test_one_cancelled_in_the_turn_is_left_out(bench) -> None:
    model = Doubler("m", bench.log)
    short(bench, model, 4)
    in_company(bench)
    tasks = ask(bench, model, 1, 2, 3, 4)
    # Its task has begun, and is cancelled before the turn it came in has ended.
    asyncio.get_running_loop().call_soon(tasks[1].cancel)
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(outcomes[1], asyncio.CancelledError)
    assert [outcomes[0], *outcomes[2:]] == [[2.0], [6.0], [8.0]]
    assert [values for _, values in bench.log] == [[1.0, 3.0, 4.0]]
    assert bench.batcher.queued == 0


async def test_a_deadline_is_heard_of_while_the_lane_is_busy(bench) -> None:
    model, first = await held_up(bench)
    soon = asyncio.get_running_loop().time() + 0.02
    with pytest.raises(DeadlinePassed):
        await run(bench, model, 5, deadline=soon)
    assert not first.done()
    assert bench.batcher.queued == 0
    model.gate.set()
    assert await first == [0.0]
    assert bench.log == [("m", [0.0])]


async def test_a_turn_yields_to_the_loop(bench, monkeypatch) -> None:
    """A hundred short calls of a turn must not hold everybody else up."""
    monkeypatch.setattr(batch, "TURN_S", 0.0)
    models = [Doubler(f"m{index}", bench.log) for index in range(5)]
    for model in models:
        short(bench, model, 1)
    in_company(bench)
    tasks = [task for model in models for task in ask(bench, model, 1)]
    laps = []
    while not all(task.done() for task in tasks):
        await asyncio.sleep(0)
        laps.append(len(bench.log))
    assert len(bench.log) == 5
    assert max(b - a for a, b in zip([0, *laps], laps, strict=False)) == 1


@pytest.mark.parametrize("here", [False, True])
@pytest.mark.parametrize("seed", range(5))
async def test_no_model_starves_another(bench, seed: int, here: bool) -> None:
    """However much is asked of some, whoever has something waiting has a call before
    any other model has two more: among those that wait for a lane, and among those
    that run on the loop."""
    chance = random.Random(seed)
    bench.batcher._ways._pace = Pace(bound=60.0 if here else 0.0)
    busy, first = await held_up(bench, "busy")
    models = [Doubler(f"m{index}", bench.log) for index in range(6)]
    waiting = {m.spec.name: chance.choice([1, 1, 8, 40, 80]) for m in models}
    in_company(bench)
    tasks = []
    for model in models:
        tasks += ask(bench, model, *range(waiting[model.spec.name]))
        if here:
            short(bench, model, *(2**power for power in range(4)))
    await asyncio.sleep(0)
    busy.gate.set()
    await asyncio.gather(first, *tasks)
    log = [call for call in bench.log if call[0] != "busy"]
    calls = [name for name, _ in log]
    since: dict[str, list[str]] = {name: [] for name in waiting}
    for name, values in log:
        for other, seen in since.items():
            if other != name and waiting[other]:
                seen.append(name)
                assert seen.count(name) <= 1, (other, calls)
        waiting[name] -= len(values)
        since[name] = []
    assert not any(waiting.values())


async def test_company_is_noticed_and_forgotten() -> None:
    later: list = []
    company = Company(later.append)
    for _ in range(LOOK_EVERY):
        assert not company.expected
        company.alone()
    (looked,) = later
    company.alone()  # one more before the turn is over
    looked()
    assert company.expected
    for _ in range(LONELY - 1):
        company.turned(3, 3)
    company.turned(3, 1)
    for _ in range(LONELY):
        assert company.expected
        company.turned(1, 1)
    assert not company.expected
    for _ in range(2 * LOOK_EVERY - 1):
        company.alone()
    assert len(later) == 1, "looks become rare where nobody shares"


async def test_who_comes_alone_is_never_made_to_wait() -> None:
    later: list = []
    company = Company(later.append)
    for _ in range(10 * LOOK_EVERY):
        company.alone()
        while later:
            later.pop()()
    assert not company.expected


async def test_a_delay_gathers_until_the_batch_is_full() -> None:
    lanes, log = Lanes(CPU, 1), []
    batcher = Batcher(lanes, lambda *_: None, max_queued=100, delay=5.0)
    bench = SimpleNamespace(batcher=batcher, log=log)
    model = Doubler("m", log)
    tasks = ask(bench, model, *range(7))
    for _ in range(5):
        await asyncio.sleep(0)
    assert log == []
    tasks += ask(bench, model, 7)
    await asyncio.gather(*tasks)
    assert [len(values) for _, values in log] == [8]
    lanes.close()


async def test_a_delay_ends_and_a_deadline_before_it_counts() -> None:
    lanes, log = Lanes(CPU, 1), []
    batcher = Batcher(lanes, lambda *_: None, max_queued=100, delay=0.02)
    bench = SimpleNamespace(batcher=batcher, log=log)
    model = Doubler("m", log)
    assert await asyncio.gather(*ask(bench, model, 1, 2)) == [[2.0], [4.0]]
    assert len(log) == 1
    slow = Batcher(lanes, lambda *_: None, max_queued=100, delay=600.0)
    bench = SimpleNamespace(batcher=slow, log=log)
    soon = asyncio.get_running_loop().time() + 10
    assert await run(bench, model, 3, deadline=soon) == [6.0]
    lanes.close()


async def test_who_is_left_over_does_not_wait_past_its_deadline() -> None:
    """Eight went as a batch; the ninth has less time than the delay."""
    lanes, log = Lanes(CPU, 1), []
    batcher = Batcher(lanes, lambda *_: None, max_queued=100, delay=600.0)
    bench = SimpleNamespace(batcher=batcher, log=log)
    model = Doubler("m", log)
    tasks = ask(bench, model, *range(8))
    soon = asyncio.get_running_loop().time() + 10
    tasks.append(asyncio.create_task(run(bench, model, 9, deadline=soon)))
    assert (await asyncio.gather(*tasks))[8] == [18.0]
    assert [len(values) for _, values in log] == [8, 1]
    lanes.close()


class Mixer(Doubler):
    """A matrix product: BLAS sums in another order for another number of rows."""

    def __init__(self, log: list) -> None:
        super().__init__("mix", log)
        self.weight = torch.randn(2, 33, generator=torch.Generator().manual_seed(1))

    def forward(self, inputs):
        (x,) = inputs
        return torch.tanh(x @ self.weight), (x > 0).any(dim=1), x.long()


async def test_company_does_not_change_an_answer(bench) -> None:
    model = Mixer(bench.log)
    asked = [row(value / 7, rows=1 + value % 3) for value in range(-6, 7)]
    single = [await bench.batcher.run(model, one) for one in asked]
    in_company(bench)
    together = await asyncio.gather(*[bench.batcher.run(model, one) for one in asked])
    assert len(bench.told) < 2 * len(asked)
    for alone, shared in zip(single, together, strict=True):
        assert [part.datatype for part in shared] == ["FP32", "BOOL", "INT64"]
        np.testing.assert_allclose(alone[0].array, shared[0].array, rtol=1e-5)
        for one, other in zip(alone[1:], shared[1:], strict=True):
            np.testing.assert_array_equal(one.array, other.array)
