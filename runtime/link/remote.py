"""An Engine that is in another process, for as long as there is one, and the next one
when it is not.

Owns: the seam's methods as questions. Must not: know what becomes of a question
(runtime/link/calls.py), or load, run or decide anything.
"""

import asyncio
import contextlib
import itertools
import socket
from collections.abc import Callable, Sequence
from typing import cast

from loader.manifest import ModelSpec
from runtime.engine import Answer, IndexEntry, ModelStatistics, Request, Snapshot
from runtime.errors import Draining
from runtime.explanation import Explanation
from runtime.link.calls import Calls
from runtime.link.memory import Region
from runtime.link.messages import Ask, Predict
from runtime.link.tensors import packed

UNREADY_AFTER_S = 10.0
"""Without an engine for so long, and the server is not ready. An engine is replaced in
less; telling every load balancer at once would do more harm than a short wait."""


class RemoteEngine:
    """`runtime.engine.Engine`, asked over a socket. One event loop."""

    def __init__(
        self, requests: Region, patience: float = 30.0, max_waiting: int = 16384
    ) -> None:
        self._requests = requests
        self._calls = Calls(requests, patience, max_waiting)
        self._numbers = itertools.count(1)
        self._clock = asyncio.get_running_loop().time

    def __repr__(self) -> str:
        state = "an engine" if self._calls.linked else "no engine"
        return f"<RemoteEngine: {state}, {len(self._calls)} calls>"

    @property
    def ready(self) -> bool:
        """See Engine. True for a while after an engine was lost: calls wait."""
        calls = self._calls
        if calls.draining or not calls.told_ready:
            return False
        return calls.linked or self._clock() - calls.lost_at < UNREADY_AFTER_S

    @property
    def calls(self) -> int:
        """Calls that have not been answered."""
        return len(self._calls)

    @property
    def held(self) -> int:
        """Bytes of requests in shared memory."""
        return self._requests.held

    def when_lost(self, told: Callable[[], None]) -> None:
        """Have somebody told of every link that is lost."""
        self._calls.on_lost = told

    async def meet(self, end: socket.socket, answers: Region) -> None:
        """Ask this engine from now on, first of all what the last one left open."""
        await self._calls.meet(end, answers)

    def close(self) -> None:
        """No engine any more, and no calls."""
        self._calls.close()

    # -- the seam ---------------------------------------------------------------------

    async def predict(self, request: Request) -> Answer:
        """See Engine."""
        self._calls.check()
        asked = Predict(
            next(self._numbers),
            request.model,
            request.version,
            request.outputs,
            request.id,
            request.deadline,
            [packed(n, t, self._requests) for n, t in request.inputs.items()],
        )
        return cast(Answer, await self._calls.ask(asked))

    async def _ask(
        self,
        what: str,
        model: str = "",
        version: str = "",
        deadline: float | None = None,
        word: str = "",
    ) -> object:
        self._calls.check()
        number = next(self._numbers)
        return await self._calls.ask(Ask(number, what, model, version, deadline, word))

    async def describe(self, model: str, version: str = "") -> ModelSpec:
        """See Engine."""
        return cast(ModelSpec, await self._ask("describe", model, version))

    async def versions(self, model: str) -> Sequence[str]:
        """See Engine."""
        return cast(Sequence[str], await self._ask("versions", model))

    async def servable(self, model: str, version: str = "") -> bool:
        """See Engine."""
        return cast(bool, await self._ask("servable", model, version))

    async def load(
        self, model: str, version: str = "", deadline: float | None = None
    ) -> None:
        """See Engine."""
        await self._ask("load", model, version, deadline)

    async def unload(self, model: str, version: str = "") -> None:
        """See Engine."""
        await self._ask("unload", model, version)

    async def index(self, ready_only: bool = False) -> Sequence[IndexEntry]:
        """See Engine."""
        word = "ready" if ready_only else ""
        return cast(Sequence[IndexEntry], await self._ask("index", word=word))

    async def statistics(
        self, model: str = "", version: str = ""
    ) -> Sequence[ModelStatistics]:
        """See Engine."""
        found = await self._ask("statistics", model, version)
        return cast(Sequence[ModelStatistics], found)

    async def snapshot(self) -> Snapshot:
        """See Engine."""
        return cast(Snapshot, await self._ask("snapshot"))

    async def explain(self, model: str, version: str = "") -> Explanation:
        """See Engine."""
        return cast(Explanation, await self._ask("explain", model, version))

    async def exposition(self, engine: object, accept: str) -> tuple[bytes, str]:
        """See runtime.rest_pages.Exposition: the page of the whole server, whoever is
        asked for it."""
        return cast(tuple[bytes, str], await self._ask("exposition", word=accept))

    async def drain(self) -> None:
        """See Engine. The engine's other front ends drain with us: all go at once."""
        self._calls.draining = True
        if self._calls.linked:
            with contextlib.suppress(Draining):  # it went before it could say that
                await self._ask("drain")
