"""Requests that wait for one model become one call; nobody waits for company."""

import asyncio
import gc
import threading
import time
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from loader.errors import DeviceFull, DeviceLost
from runtime.batch import Batcher
from runtime.conformance import Fitted
from runtime.contents import Piece
from runtime.errors import DeadlinePassed, QueueFull
from runtime.lanes import Lanes
from runtime.pace import STALL_S, Pace
from tests.fake_models import spec_of

CPU = torch.device("cpu")


class Doubler:
    """A model that doubles, and remembers its calls. `gate` holds its calls up."""

    def __init__(self, name: str, log: list, breaks: float | None = None) -> None:
        self.spec = spec_of(name, 1)
        self.graph = SimpleNamespace(digest=name)
        self.device = CPU
        self.log = log
        self.breaks = breaks
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.trouble: list[Exception] = []

    def forward(self, inputs):
        (x,) = inputs
        self.entered.set()
        assert self.gate.wait(10)
        self.log.append((self.spec.name, [row[0] for row in x.tolist()]))
        if self.trouble:
            raise self.trouble.pop(0)
        if self.breaks is not None and (x == self.breaks).any():
            raise ValueError("cannot")
        return (x * 2,)


@pytest.fixture
async def bench():
    lanes = Lanes(CPU, 1)
    log, told = [], []
    batcher = Batcher(lanes, lambda *ended: told.append(ended), max_queued=10)
    yield SimpleNamespace(lanes=lanes, batcher=batcher, log=log, told=told)
    lanes.close()


def row(value: float, rows: int = 1, width: int = 2) -> Fitted:
    data = memoryview(np.full((rows, width), value, np.float32)).cast("B")
    return Fitted([Piece("FP32", (rows, width), data)], rows, ((width,),))


async def run(bench, model, value: float, rows: int = 1, deadline=None) -> list[float]:
    (y,) = await bench.batcher.run(model, row(value, rows), deadline)
    return [r[0] for r in y.array.tolist()]


def ask(bench, model, *values: float) -> list[asyncio.Task]:
    return [asyncio.create_task(run(bench, model, value)) for value in values]


async def held_up(bench, name: str = "m") -> tuple[Doubler, asyncio.Task]:
    """The one lane is busy with a request of this model."""
    model = Doubler(name, bench.log)
    model.gate.clear()
    (first,) = ask(bench, model, 0)
    await asyncio.to_thread(model.entered.wait, 10)
    return model, first


async def test_alone_a_request_is_a_call(bench) -> None:
    model = Doubler("m", bench.log)
    assert await run(bench, model, 3) == [6.0]
    assert bench.log == [("m", [3.0])]


async def test_what_waits_goes_together_in_order(bench) -> None:
    model, first = await held_up(bench)
    rest = ask(bench, model, 1, 2, 3)
    await asyncio.sleep(0)
    model.gate.set()
    assert await asyncio.gather(first, *rest) == [[0.0], [2.0], [4.0], [6.0]]
    assert bench.log == [("m", [0.0]), ("m", [1.0, 2.0, 3.0])]
    ended = bench.told[1]
    assert len(ended[1]) == ended[2] == 3


async def test_no_call_is_larger_than_the_model_allows(bench) -> None:
    model, first = await held_up(bench)
    rest = [asyncio.create_task(run(bench, model, v, rows=3)) for v in (1, 2, 3)]
    await asyncio.sleep(0)
    model.gate.set()
    await asyncio.gather(first, *rest)
    assert [len(values) for _, values in bench.log] == [1, 6, 3]


async def test_other_shapes_go_in_another_call(bench) -> None:
    model, first = await held_up(bench)
    wide = asyncio.create_task(bench.batcher.run(model, row(1, width=5)))
    (narrow,) = ask(bench, model, 1)
    await asyncio.sleep(0)
    model.gate.set()
    await first
    (y,) = await wide
    assert y.array.shape == (1, 5)
    assert await narrow == [2.0]


async def test_models_take_turns(bench) -> None:
    """One that is asked without end does not starve another."""
    a, first = await held_up(bench, "a")
    b = Doubler("b", bench.log)
    many = [asyncio.create_task(run(bench, a, v, rows=8)) for v in range(4)]
    few = ask(bench, b, 9)
    await asyncio.sleep(0)
    a.gate.set()
    await asyncio.gather(first, *many, *few)
    assert [name for name, _ in bench.log] == ["a", "a", "b", "a", "a", "a"]


async def test_one_bad_request_takes_no_other_down(bench) -> None:
    model, first = await held_up(bench)
    model.breaks = 2.0
    good, bad, other = ask(bench, model, 1, 2, 3)
    await asyncio.sleep(0)
    model.gate.set()
    assert await good == [2.0]
    assert await other == [6.0]
    with pytest.raises(ValueError, match="cannot"):
        await bad
    await first


async def test_out_of_memory_is_typed_and_tried_in_smaller_calls(bench) -> None:
    model, first = await held_up(bench)
    rest = ask(bench, model, 1, 2)
    await asyncio.sleep(0)
    model.trouble = [  # the call that runs, the batch, and one of its halves
        torch.OutOfMemoryError("CUDA out of memory"),
        torch.OutOfMemoryError("CUDA out of memory"),
        torch.OutOfMemoryError("CUDA out of memory"),
    ]
    model.gate.set()
    outcomes = await asyncio.gather(first, *rest, return_exceptions=True)
    assert isinstance(outcomes[0], DeviceFull)
    assert isinstance(outcomes[1], DeviceFull)
    assert outcomes[2] == [4.0]


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
        MemoryError(),
    ],
)
async def test_a_host_without_memory_is_typed_too(bench, error) -> None:
    model = Doubler("m", bench.log)
    model.trouble = [error]
    with pytest.raises(DeviceFull):
        await run(bench, model, 1)


async def test_a_failed_call_holds_none_of_its_tensors(bench) -> None:
    """Activations may be gigabytes; a collector that may come late must not be what
    frees them, and the calls that follow a failed batch need the room at once."""
    alive: list[weakref.ref] = []

    class Leaky(Doubler):
        def forward(self, inputs):
            assert [ref for ref in alive if ref() is not None] == []
            activation = torch.zeros(1000)
            alive.append(weakref.ref(activation))
            return super().forward(inputs)

    model = Leaky("m", bench.log, breaks=2.0)
    model.gate.clear()
    tasks = ask(bench, model, 0)
    await asyncio.to_thread(model.entered.wait, 10)
    tasks += ask(bench, model, 1, 2, 3)
    await asyncio.sleep(0)
    gc.disable()
    try:
        model.gate.set()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(outcomes[2], ValueError)
        assert len(alive) == 5, "alone, together, and then one by one"
        assert [ref for ref in alive if ref() is not None] == []
    finally:
        gc.enable()


async def test_cancelled_while_queued_never_runs(bench) -> None:
    model, first = await held_up(bench)
    gone, stays = ask(bench, model, 1, 2)
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.wait([gone])
    model.gate.set()
    assert await stays == [4.0]
    await first
    assert bench.log == [("m", [0.0]), ("m", [2.0])]
    assert bench.batcher.queued == 0


async def test_a_model_that_came_back_is_not_run_in_its_former_life(bench) -> None:
    """Everybody who waited for a model gave up while the lane was busy; their leases
    are over, it was evicted, and loaded again for the next one who asks."""
    busy, first = await held_up(bench, "busy")
    former = Doubler("m", bench.log)
    former.trouble = [AssertionError("its weights are somebody else's by now")]
    (gone,) = ask(bench, former, 1)
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.wait([gone])
    (stays,) = ask(bench, Doubler("m", bench.log), 2)
    await asyncio.sleep(0)
    busy.gate.set()
    assert await stays == [4.0]
    await first
    assert bench.batcher.queued == 0


async def test_who_gave_up_takes_no_place_in_the_queue(bench) -> None:
    """Short deadlines and a busy device: the dead must not fill the queue."""
    model, first = await held_up(bench)
    for _ in range(3):
        wave = ask(bench, model, *range(10))
        await asyncio.sleep(0)
        jobs = [weakref.ref(job) for job in queued(bench)]
        assert len(jobs) == bench.batcher.queued == 10
        for task in wave:
            task.cancel()
        await asyncio.wait(wave)
        del wave, task
        assert bench.batcher.queued == 0
        assert [ref for ref in jobs if ref() is not None] == []
    (stays,) = ask(bench, model, 4)
    await asyncio.sleep(0)
    model.gate.set()
    assert await stays == [8.0]
    await first
    assert bench.log == [("m", [0.0]), ("m", [4.0])]


def queued(bench):
    return [job for line in bench.batcher._lines for job in line.jobs]


async def test_cancelled_while_running_waits_for_the_lane(bench) -> None:
    model, first = await held_up(bench)
    first.cancel()
    await asyncio.sleep(0)
    first.cancel()
    for _ in range(10):
        await asyncio.sleep(0)
    assert not first.done()
    model.gate.set()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert bench.lanes.free == 1


async def test_a_deadline_that_passed_in_the_queue_costs_no_forward(bench) -> None:
    model, first = await held_up(bench)
    now = asyncio.get_running_loop().time()
    late = asyncio.create_task(run(bench, model, 5, deadline=now - 1))
    await asyncio.sleep(0)
    model.gate.set()
    await first
    with pytest.raises(DeadlinePassed):
        await late
    assert bench.log == [("m", [0.0])]


async def test_the_queue_is_bounded(bench) -> None:
    model, first = await held_up(bench)
    rest = ask(bench, model, *range(10))
    await asyncio.sleep(0)
    with pytest.raises(QueueFull):
        await run(bench, model, 11)
    model.gate.set()
    await asyncio.gather(first, *rest)
    assert bench.batcher.queued == 0


async def test_batching_can_be_off() -> None:
    lanes, log = Lanes(CPU, 1), []
    batcher = Batcher(lanes, lambda *_: None, max_queued=10, together=False)
    bench = SimpleNamespace(batcher=batcher, log=log, lanes=lanes)
    model, first = await held_up(bench)
    rest = ask(bench, model, 1, 2)
    await asyncio.sleep(0)
    model.gate.set()
    await asyncio.gather(first, *rest)
    assert [values for _, values in log] == [[0.0], [1.0], [2.0]]
    lanes.close()


async def test_a_lost_device_is_told_of() -> None:
    lost: list[bool] = []
    lanes = Lanes(CPU, 1, lambda: lost.append(True))
    batcher = Batcher(lanes, lambda *_: None, max_queued=10)
    model = Doubler("m", [])
    model.trouble = [DeviceLost("the device was lost; the server restarts")]
    with pytest.raises(DeviceLost):
        await batcher.run(model, row(1))
    assert lost == [True]
    lanes.close()


async def test_a_short_call_runs_without_a_hop(bench) -> None:
    """Once a call has shown to be short it runs on the loop, and answers the same."""
    model = Doubler("m", bench.log)
    threads = set()
    inner = model.forward

    def forward(inputs):
        threads.add(threading.current_thread() is threading.main_thread())
        return inner(inputs)

    model.forward = forward
    for value in range(20):
        assert await run(bench, model, value) == [value * 2.0]
    assert threads == {True, False}
    model.trouble = [ValueError("cannot")]
    with pytest.raises(ValueError, match="cannot"):
        await run(bench, model, 1)
    assert bench.lanes.free == 1


def test_only_what_was_seen_to_be_short_is_short() -> None:
    pace = Pace(bound=1e-4)
    for seconds in (9.0, 5e-5, 5e-5):  # the first is always slow, and is not counted
        assert not pace.is_short("g", ((2,),), 1)
        pace.told("g", ((2,),), 1, seconds)
    assert pace.is_short("g", ((2,),), 1)
    assert not pace.is_short("g", ((2,),), 64)
    assert not pace.is_short("g", ((3,),), 1)
    for _ in range(10):
        pace.told("g", ((2,),), 1, 5e-4)
    assert not pace.is_short("g", ((2,),), 1), "it has become slow"
    assert pace.is_short("g", ((2,),), 1, 8), "but not for eight"
    for _ in range(20):
        pace.told("g", ((2,),), 1, 2e-3)
    assert not pace.is_short("g", ((2,),), 1, 1000), "the loop has others to serve"


async def test_what_waits_in_its_lane_is_not_taken_for_long(bench) -> None:
    """Beside loads a lane waits for the interpreter more than it runs."""
    model, threads = Doubler("m", bench.log), []
    inner = model.forward

    def forward(inputs):
        threads.append(threading.current_thread() is threading.main_thread())
        time.sleep(0.002)  # four times the bound, without a core
        return inner(inputs)

    model.forward = forward
    for value in range(8):
        assert await run(bench, model, value) == [value * 2.0]
    assert threads[0] is False
    assert threads[-1] is True


def test_what_held_the_loop_up_for_long_counts_by_the_wall() -> None:
    pace = Pace()
    for _ in range(4):
        pace.told("g", ((2,),), 1, 1e-4, STALL_S / 2)
    assert pace.is_short("g", ((2,),), 1)
    pace.told("g", ((2,),), 1, 1e-4, STALL_S * 2)
    assert not pace.is_short("g", ((2,),), 1)
    for _ in range(20):
        pace.told("g", ((2,),), 1, 1e-4)
    assert pace.is_short("g", ((2,),), 1), "one stall is forgotten"
