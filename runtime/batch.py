"""Batching: requests that wait for one model become one call.

    submit -> queue of its model -> a lane is free -> all that waits, up to
              max_batch_size rows -> one forward -> split -> answers

Owns: the queues, one a model, and whose turn it is. Must not: lease, load, or delay: a
free lane takes what is there; only while all lanes are busy does a queue grow, and then
the next call carries it all. No added latency when idle, larger batches under load.

Models take turns in the order in which they began to wait, one batch a turn, so that no
model starves another. All state is the event loop's; only `forward` runs in a lane.
"""

import asyncio
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from loader.errors import DeviceFull, DeviceLost
from loader.load import Model
from loader.threads import settled
from runtime.errors import DeadlinePassed, QueueFull
from runtime.lanes import Lanes
from runtime.pace import Pace

Tensors = tuple[torch.Tensor, ...]

LOST = (torch.AcceleratorError, DeviceLost)


@dataclass(eq=False, slots=True)
class Job:
    """One request on its way through a lane."""

    inputs: Tensors
    rows: int
    signature: tuple[tuple[int, ...], ...]
    deadline: float | None
    since: float
    done: asyncio.Future[Tensors]
    running: bool = False
    waited: float = 0.0


@dataclass(eq=False, slots=True)
class Queue:
    """What waits for one model. It lives while somebody waits."""

    model: Model
    jobs: deque[Job]


Witness = Callable[[Model, Sequence[Job], float], None]
"""Told of every call that ended: its model, its jobs, its seconds in the lane."""


class Batcher:
    """Turns waiting requests into calls. One instance, one event loop."""

    def __init__(
        self, lanes: Lanes, witness: Witness, max_queued: int, together: bool = True
    ) -> None:
        self._lanes = lanes
        self._witness = witness
        self._max_queued = max_queued
        self._together = together
        self._pace = Pace()
        # By identity and not by name: a job runs in the life of its model that it has
        # a lease on, and no other. (A queue holds its model: no id comes twice.)
        self._queues: dict[int, Queue] = {}
        self._turns: deque[int] = deque()
        self.queued = 0

    async def run(
        self, model: Model, inputs: Tensors, rows: int, deadline: float | None = None
    ) -> Tensors:
        """The model's outputs for these inputs (on the CPU), rows in the same order.

        Cancelled while queued: out of the queue, nothing runs. Cancelled while running:
        raised when the lane is done. Raises QueueFull, DeadlinePassed, DeviceFull.
        """
        if self.queued >= self._max_queued:
            raise QueueFull(f"{self.queued} requests wait for the device already", 0.5)
        loop = asyncio.get_running_loop()
        signature = tuple([tuple(t.shape[1:]) for t in inputs])
        job = Job(inputs, rows, signature, deadline, loop.time(), loop.create_future())
        if self._lanes.inline and not self._turns:
            shape = (model.graph.digest, rows, signature)
            if self._pace.is_short(shape):
                return self._here(model, job)
        self._put(model, job)
        self._start()
        try:
            # shield: a bare await would cancel `done` with us, and a lane may have
            # begun meanwhile; then we must not go before it ends.
            return await asyncio.shield(job.done)
        except asyncio.CancelledError:
            if job.running:
                await settled(job.done)
            elif not job.done.done():
                self._withdraw(id(model), job)
            raise

    def _here(self, model: Model, job: Job) -> Tensors:
        """Run a call that is known to be short on the event loop itself."""
        ended = self._lanes.run_here(lambda: forward(model, [job]))
        self._told(model, [job], ended)
        (outcome,) = ended.outcomes
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def _told(self, model: Model, batch: list[Job], ended: "Ended") -> None:
        if len(batch) == 1:
            shape = (model.graph.digest, batch[0].rows, batch[0].signature)
            self._pace.told(shape, ended.seconds)
        self._witness(model, batch, ended.seconds)

    def _put(self, model: Model, job: Job) -> None:
        key = id(model)
        queue = self._queues.get(key)
        if queue is None:
            queue = self._queues[key] = Queue(model, deque())
            self._turns.append(key)
        queue.jobs.append(job)
        self.queued += 1

    def _withdraw(self, key: int, job: Job) -> None:
        """Nobody waits for this job: its tensors go now, its lease does too. Were it
        left until a lane is free, the dead could fill the queue against the living."""
        queue = self._queues[key]
        queue.jobs.remove(job)
        self.queued -= 1
        if not queue.jobs:
            del self._queues[key]
            self._turns.remove(key)

    def _start(self) -> None:
        """Give each free lane the next model's batch."""
        while self._turns and self._lanes.free:
            key = self._turns.popleft()
            queue = self._queues[key]
            batch = self._take(queue)
            if queue.jobs:
                self._turns.append(key)
            else:
                del self._queues[key]
            if batch:
                self._launch(queue.model, batch)

    def _take(self, queue: Queue) -> list[Job]:
        """The next call of a model: the oldest job, and what fits beside it."""
        batch: list[Job] = []
        limit = queue.model.spec.max_batch_size if self._together else 0
        rows, now = 0, asyncio.get_running_loop().time()
        while queue.jobs:
            job = queue.jobs[0]
            if job.deadline is not None and job.deadline <= now:
                job.done.set_exception(
                    DeadlinePassed("the deadline passed while the request waited")
                )
            elif batch and (
                rows + job.rows > limit or job.signature != batch[0].signature
            ):
                break
            else:
                batch.append(job)
                rows += job.rows
            queue.jobs.popleft()
            self.queued -= 1
        return batch

    def _launch(self, model: Model, batch: list[Job]) -> None:
        now = asyncio.get_running_loop().time()
        for job in batch:
            job.running = True
            job.waited = now - job.since
        call = self._lanes.start(lambda: forward(model, batch))
        call.add_done_callback(lambda ended: self._finished(model, batch, ended))

    def _finished(
        self, model: Model, batch: list[Job], call: "asyncio.Future[Ended]"
    ) -> None:
        try:
            ended = call.result()
        except Exception as error:  # noqa: BLE001 - whatever it is, the callers hear it
            ended = Ended([error] * len(batch), 0.0)
        for job, outcome in zip(batch, ended.outcomes, strict=True):
            if job.done.done():
                continue
            if isinstance(outcome, Exception):
                job.done.set_exception(outcome)
            else:
                job.done.set_result(outcome)
        self._told(model, batch, ended)
        self._start()


@dataclass(frozen=True, slots=True)
class Ended:
    """What became of each job of a call, and the seconds it took in its lane."""

    outcomes: Sequence[Tensors | Exception]
    seconds: float


def forward(model: Model, batch: Sequence[Job]) -> Ended:
    """One call for all; should it fail, one call each, so that one bad request (or a
    batch too large for the memory left) takes no other down with it. In a lane."""
    began = time.perf_counter()
    outcomes: Sequence[Tensors | Exception]
    if len(batch) == 1:
        outcomes = [_alone(model, batch[0])]
    else:
        # Not in the `except`: there the failed call's tensors would still be held.
        outcomes = _together(model, batch) or [_alone(model, job) for job in batch]
    return Ended(outcomes, time.perf_counter() - began)


def _alone(model: Model, job: Job) -> Tensors | Exception:
    try:
        return _call(model, job.inputs)
    except LOST:
        raise  # nobody's own fault, and no other call can succeed (runtime/lanes.py)
    except Exception as error:  # noqa: BLE001 - the caller's to hear, not the batch's
        if _out_of_memory(error):
            return DeviceFull("the device has no memory left to run this request")
        # Its traceback holds the forward's frame and so every activation, for as long
        # as anybody holds the error: in a cycle of frames until the next collection.
        traceback.clear_frames(error.__traceback__)
        return error


def _out_of_memory(error: Exception) -> bool:
    """The CPU allocator raises a plain RuntimeError; the text is its only sign."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "allocate memory" in str(error)
    )


def _together(model: Model, batch: Sequence[Job]) -> list[Tensors]:
    """Each job's outputs; none at all if the call failed."""
    columns = zip(*[job.inputs for job in batch], strict=True)
    sizes = [job.rows for job in batch]
    try:
        outputs = _call(model, tuple([torch.cat(column) for column in columns]))
        parts = [torch.split(output, sizes) for output in outputs]
    except Exception:  # noqa: BLE001 - tried one by one, and then told to each
        return []
    return [tuple(part) for part in zip(*parts, strict=True)]


def _call(model: Model, inputs: Tensors) -> Tensors:
    device = model.device
    if device.type == "cpu":
        return model.forward(inputs)
    outputs = model.forward(tuple([t.to(device, non_blocking=True) for t in inputs]))
    return tuple([t.cpu() for t in outputs])
