"""The calls of a front end that have been asked and not been answered.

Owns: them, the shared memory of their tensors, and whom to ask: the engine there is, or
the next one. Must not: know what an answer means to a caller (runtime/link/remote.py),
or how engines are started (runtime/tree/).

While no engine is there, calls wait: until their own deadline, or `patience` seconds.
"""

import asyncio
import socket
from collections.abc import Callable, Sequence

import structlog
import torch

from runtime.engine import Answer
from runtime.errors import DeadlinePassed, Draining, EngineLost, QueueFull
from runtime.link.failures import restored
from runtime.link.memory import Region
from runtime.link.messages import (
    RESULTS,
    Answered,
    Ask,
    Cancel,
    Failed,
    Free,
    Part,
    Predict,
    Ready,
    Reply,
    Told,
    replies,
)
from runtime.link.pending import Pending
from runtime.link.stream import Stream
from runtime.link.tensors import stretches, unpacked

log = structlog.get_logger()


class Calls:
    """One event loop. `draining`: what is lost now is not asked again."""

    def __init__(self, requests: Region, patience: float, max_waiting: int) -> None:
        self._requests = requests
        self._patience = patience
        self._max_waiting = max_waiting
        self._loop = asyncio.get_running_loop()
        self._open: dict[int, Pending] = {}
        self._stream: Stream[Reply] | None = None
        self._answers: Region | None = None
        self.told_ready = False
        self.lost_at = 0.0
        self.draining = False
        self.on_lost: Callable[[], None] = lambda: None

    def __len__(self) -> int:
        return len(self._open)

    @property
    def linked(self) -> bool:
        """True while there is an engine to ask."""
        return self._stream is not None

    # -- engines come and go ----------------------------------------------------------

    async def meet(self, end: socket.socket, answers: Region) -> None:
        """Ask this engine from now on, first of all what the last one left open."""
        stream: Stream[Reply] = Stream(replies, self._heard, lambda: self._lost(stream))
        await stream.open(end)
        if stream.closed:  # an engine that died on its first breath
            return
        if self._stream is not None:
            # Its end has been seen elsewhere sooner than here.
            self._stream.close()
            self._lost(self._stream)
        self._stream, self._answers = stream, answers
        for pending in list(self._open.values()):
            pending.quiet()
            self._send(pending)

    def _lost(self, stream: Stream[Reply]) -> None:
        if stream is not self._stream:
            return
        noted = self._answers.note if self._answers is not None else 0
        if self._answers is not None:
            self._answers.close()
        self._stream = self._answers = None
        self.lost_at = self._loop.time()
        if self._open and not self.draining:
            log.warning("the engine is lost, calls wait for the next", calls=len(self))
        self.on_lost()
        if self.draining:
            self._refuse_all()
        for pending in list(self._open.values()):
            refusal = pending.engine_lost(noted)
            if refusal is not None:
                self._forget(pending, refusal)
            elif pending.answer.done():
                self._forget(pending, None)  # its caller left, and nobody reads it now
            else:
                self._wait(pending)

    def close(self) -> None:
        """No engine any more, and no calls. Who lets go of a link has not lost it, and
        nobody is told so: an engine that is said to be lost is replaced."""
        self.draining = True
        self.on_lost = lambda: None
        if self._stream is not None:
            self._stream.close()
            self._lost(self._stream)
        self._refuse_all()

    def _refuse_all(self) -> None:
        for pending in list(self._open.values()):
            self._forget(pending, Draining("the server is shutting down", 1.0))

    def check(self) -> None:
        """Raises what speaks against one more call, before it costs anything."""
        if len(self._open) >= self._max_waiting:
            raise QueueFull(f"{len(self)} requests wait for the engine already", 0.5)
        if self.draining and self._stream is None:
            raise Draining("the server is shutting down", 1.0)

    # -- one call ---------------------------------------------------------------------

    async def ask(self, asked: Predict | Ask) -> object:
        """What the engine answers; it takes over the stretches of `asked`."""
        pending = Pending(asked, self._loop.create_future())
        if isinstance(asked, Predict):
            pending.stretches = stretches(asked.inputs)
        self._open[asked.call] = pending
        if self._stream is not None:
            self._send(pending)
        else:
            self._wait(pending)
        try:
            return await pending.answer
        except asyncio.CancelledError:
            self._leave(pending)
            raise

    def _send(self, pending: Pending) -> None:
        assert self._stream is not None
        pending.sent = True
        self._stream.say(pending.asked)

    def _wait(self, pending: Pending) -> None:
        """There is no engine. grpc would end a call whose deadline has passed, but not
        every caller does; and who has no deadline shall not wait for ever."""
        latest = self._loop.time() + self._patience
        deadline = pending.asked.deadline
        if deadline is not None and deadline <= latest:
            late: Exception = DeadlinePassed("the deadline passed while it waited")
        else:
            deadline = latest
            late = EngineLost("there is no engine just now; it is being started", 1.0)
        pending.quiet()
        pending.alarm = self._loop.call_at(deadline, self._forget, pending, late)

    def _leave(self, pending: Pending) -> None:
        """Its caller is gone. What was sent is still read there, until that says so."""
        if pending.sent and self._stream is not None:
            self._stream.say(Cancel(pending.asked.call))
        else:
            self._forget(pending, None)

    def _forget(self, pending: Pending, error: Exception | None) -> None:
        """The end of a call."""
        if self._open.pop(pending.asked.call, None) is None:
            return
        pending.quiet()
        for start in pending.stretches:
            self._requests.free(start)
        if error is not None and not pending.answer.done():
            pending.answer.set_exception(error)

    # -- what the engine says ---------------------------------------------------------

    def _heard(self, messages: Sequence[Reply]) -> None:
        for message in messages:
            if isinstance(message, Ready):
                self.told_ready = message.ready
                continue
            pending = self._open.get(message.call)
            if pending is None:
                raise AssertionError("A call was answered twice. This is a bug.")
            if isinstance(message, Failed):
                self._forget(pending, restored(message))
                continue
            value = self._value(message, pending)
            self._forget(pending, None)
            if not pending.answer.done():
                pending.answer.set_result(value)

    def _value(self, message: Answered | Told, pending: Pending) -> object:
        if isinstance(message, Told):
            assert isinstance(pending.asked, Ask)
            return RESULTS[pending.asked.what].decode(message.value)
        outputs = [(part.name, self._read(part)) for part in message.outputs]
        return Answer(message.model, message.version, outputs, message.temperature)

    def _read(self, part: Part) -> torch.Tensor:
        """Copied, and its place given back at once: then nothing here can keep the
        engine's memory, whatever becomes of the answer."""
        assert self._answers is not None
        assert self._stream is not None
        tensor = unpacked(part, self._answers, copy=True)
        if not isinstance(part.data, bytes):
            self._stream.say(Free(part.data[0]))
        return tensor
