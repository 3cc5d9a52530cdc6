"""The engine's side of the seam: one front end's calls, answered by an Engine.

Owns: the tasks of one front end, and its shared memory for as long as it lives. Must
not: decide anything about a request; and it believes nothing that a front end says
about places and sizes (runtime/link/tensors.py checks them).
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence

from runtime.engine import Answer, Engine, Request
from runtime.failures import forget_frames
from runtime.link.failures import failed
from runtime.link.memory import Region
from runtime.link.messages import (
    Answered,
    Ask,
    Failed,
    Free,
    Predict,
    Question,
    Ready,
    Told,
    questions,
    raw,
)
from runtime.link.stream import Stream
from runtime.link.tensors import packed, unpacked
from runtime.rest_pages import Exposition

LOOK_AGAIN_S = 0.1
"""How often it looks whether the engine is still ready; nobody tells."""


LET_GO_S = 1.0


class Answering:
    """`suspects`: one lock for all front ends of an engine."""

    def __init__(
        self,
        engine: Engine,
        exposition: Exposition,
        requests: Region,
        answers: Region,
        suspects: asyncio.Lock,
        left: Callable[[], None] = lambda: None,
    ) -> None:
        self._engine = engine
        self._exposition = exposition
        self._requests = requests
        self._answers = answers
        self._suspects = suspects
        self._left = left
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._stream: Stream[Question] = Stream(questions, self._heard, self._lost)
        self._readiness: asyncio.Task[None] | None = None

    @property
    def calls(self) -> int:
        """Calls that are being answered."""
        return len(self._tasks)

    @property
    def held(self) -> int:
        """Bytes of answers that the front end has not read yet."""
        return 0 if self._stream.closed else self._answers.held

    async def open(self, end: socket.socket) -> None:
        """Answer what comes over `end`, until it closes."""
        await self._stream.open(end)
        self._readiness = asyncio.create_task(self._tell_readiness())

    def close(self) -> None:
        """The engine goes; what was answered is still said."""
        self._stream.close()

    async def _tell_readiness(self) -> None:
        said: bool | None = None
        while True:
            if self._engine.ready != said:
                said = self._engine.ready
                self._stream.say(Ready(said))
            await asyncio.sleep(LOOK_AGAIN_S)

    def _heard(self, messages: Sequence[Question]) -> None:
        for message in messages:
            if isinstance(message, Predict):
                self._begin(message.call, self._predict(message))
            elif isinstance(message, Ask):
                self._begin(message.call, self._ask(message))
            elif isinstance(message, Free):
                self._answers.free(message.start)
            elif (task := self._tasks.get(message.call)) is not None:
                task.cancel()

    def _begin(self, call: int, answer: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(answer)
        self._tasks[call] = task
        # Not at the end of the coroutine: one that is cancelled before it has begun
        # never gets there, and its caller would wait for ever.
        task.add_done_callback(lambda ended: self._ended(call, ended))

    def _ended(self, call: int, task: asyncio.Task[None]) -> None:
        del self._tasks[call]
        if self._stream.closed:
            self._let_go()
        elif task.cancelled():
            self._stream.say(Failed(call, "", "", {}))

    async def _predict(self, asked: Predict) -> None:
        try:
            if asked.suspect:
                answer = await self._alone(asked)
            else:
                answer = await self._engine.predict(self._request(asked))
            reply = Answered(
                asked.call,
                answer.model,
                answer.version,
                answer.temperature,
                [
                    packed(name, tensor, self._answers)
                    for name, tensor in answer.outputs
                ],
            )
        except Exception as error:  # noqa: BLE001 - told to whoever asked
            self._stream.say(failed(asked.call, error, "predict"))
            forget_frames(error)
        else:
            self._stream.say(reply)

    def _request(self, asked: Predict) -> Request:
        return Request(
            asked.model,
            {p.name: unpacked(p, self._requests, copy=False) for p in asked.inputs},
            asked.version,
            asked.outputs,
            asked.id,
            asked.deadline,
        )

    async def _alone(self, asked: Predict) -> Answer:
        """One that may have been the end of an engine: no other such runs beside it,
        and a note says which, so that no innocent is blamed if it happens again. Its
        model comes in before, beside the others'."""
        request = self._request(asked)
        await self._engine.load(asked.model, asked.version, asked.deadline)
        async with self._suspects:
            self._answers.note = asked.call
            try:
                return await self._engine.predict(request)
            finally:
                self._answers.note = 0

    async def _ask(self, asked: Ask) -> None:
        try:
            value = await _ANSWERS[asked.what](self, asked)
            self._stream.say(Told(asked.call, raw(value)))
        except Exception as error:  # noqa: BLE001 - told to whoever asked
            self._stream.say(failed(asked.call, error, asked.what))
            forget_frames(error)

    async def _exposed(self, asked: Ask) -> tuple[bytes, str]:
        return await self._exposition.exposition(self._engine, asked.word)

    def _lost(self) -> None:
        """The front end is gone, and with it everybody who waits."""
        if self._readiness is not None:
            self._readiness.cancel()
        for task in self._tasks.values():
            task.cancel()
        self._let_go()
        self._left()

    def _let_go(self) -> None:
        """Of the shared memory, once no forward reads it any more."""
        if self._tasks:
            return
        # What was cancelled may keep a view for as long as its frames are looked at.
        if not (self._requests.close() and self._answers.close()):
            asyncio.get_running_loop().call_later(LET_GO_S, self._let_go)


_Answer = Callable[[Answering, Ask], Awaitable[object]]

_ANSWERS: Mapping[str, _Answer] = {
    "describe": lambda a, q: a._engine.describe(q.model, q.version),
    "versions": lambda a, q: a._engine.versions(q.model),
    "servable": lambda a, q: a._engine.servable(q.model, q.version),
    "load": lambda a, q: a._engine.load(q.model, q.version, q.deadline),
    "unload": lambda a, q: a._engine.unload(q.model, q.version),
    "index": lambda a, q: a._engine.index(q.word == "ready"),
    "statistics": lambda a, q: a._engine.statistics(q.model, q.version),
    "snapshot": lambda a, q: a._engine.snapshot(),
    "explain": lambda a, q: a._engine.explain(q.model, q.version),
    "drain": lambda a, q: a._engine.drain(),
    "exposition": Answering._exposed,
}
