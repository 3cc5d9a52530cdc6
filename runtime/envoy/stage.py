"""A program's life inside Envoy, which calls it as an ASGI application.

Owns: ASGI's lifespan, and how the process ends. Must not: know what the program serves.

    Envoy                        here                         the program
    lifespan.startup      ->     starts the program     ->    makes itself
    listens               <-     startup.complete       <-    stage.open(app)
    (signals)                    stage.told             ->    ends in its own time
    ends                  <-     quits Envoy            <-    returns an exit code
    lifespan.shutdown     ->     shutdown.complete

Envoy may also end by itself; then the program is told, and waited for, and the process
ends with a code that nobody takes for a good end.
"""

import asyncio
import contextlib
import os
import shutil
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import structlog

from runtime.asgi.types import Asgi, Message, Receive, Send
from runtime.envoy import rank, signals
from runtime.envoy.admin import Admin
from runtime.envoy.run import Run

log = structlog.get_logger()

ORDERLY_S = 5.0
"""Given to Envoy to end in order once there is nothing left to lose."""

DESERTED = 1
"""Exit code when Envoy ends before the program does, however well that ends then."""


class NotListening(Exception):
    """Envoy ends before it has listened."""


class Stage:
    """What a program has of Envoy. `told`: set when it is to end: by Envoy, or by a
    signal, unless a supervisor says when. `over`: set when Envoy ends."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.admin = Admin(str(Path(run.folder) / "admin"))
        self.told = asyncio.Event()
        self.over = asyncio.Event()
        self.opened: asyncio.Future[Asgi] = asyncio.get_running_loop().create_future()

    def open(self, app: Asgi) -> None:
        """From now on requests go to `app`; Envoy begins to listen."""
        self.opened.set_result(app)

    def close(self) -> None:
        """Envoy ends: the program is to end too, and need not ask Envoy anything."""
        self.admin.over = True
        self.over.set()
        self.told.set()

    async def listening(self) -> Sequence[str]:
        """The addresses Envoy listens on, our listener's first. Raises NotListening:
        an Envoy that ends answers no questions."""
        asking = asyncio.ensure_future(self.admin.listening())
        over = asyncio.ensure_future(self.over.wait())
        await asyncio.wait({asking, over}, return_when=asyncio.FIRST_COMPLETED)
        over.cancel()
        if asking.done():
            return asking.result()
        asking.cancel()
        raise NotListening("Envoy does not listen, and has said why above")


async def first(*events: asyncio.Event) -> None:
    """Until one of them is set."""
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()


Program = Callable[[Stage], Awaitable[int]]
"""Serves until told to stop; gives the process' exit code. It may not raise."""


class Staged:
    """The ASGI application that Envoy calls."""

    _asgi_single_callable = True  # a plain function, yet ASGI 3

    def __init__(self, run: Callable[[], Run], program: Program) -> None:
        self._run = run
        self._program = program
        self._app: Asgi = self._lifespan

    def __call__(self, scope: Message, receive: Receive, send: Send) -> Awaitable[None]:
        """A request; before the program is open, the lifespan."""
        return self._app(scope, receive, send)

    async def _lifespan(self, _: Message, receive: Receive, send: Send) -> None:
        await receive()
        rank.push_ahead()
        stage = Stage(self._run())
        if stage.run.control is None:
            signals.listen(asyncio.get_running_loop(), stage.told.set)
        playing = asyncio.ensure_future(self._play(stage))
        # A program that ends before it is open ends the process.
        self._app = await stage.opened
        await send({"type": "lifespan.startup.complete"})
        await receive()
        stage.close()
        await playing
        await send({"type": "lifespan.shutdown.complete"})

    async def _play(self, stage: Stage) -> None:
        code = await self._program(stage)
        if stage.over.is_set():
            code = code or DESERTED
            log.error("Envoy ended by itself", code=code)
        with contextlib.suppress(OSError):
            # Before it listens, or with a code of ours, Envoy cannot end for us.
            if stage.opened.done() and code == 0:
                asyncio.get_running_loop().call_later(ORDERLY_S, leave, stage, code)
                await stage.admin.quit()
                shutil.rmtree(stage.run.folder, ignore_errors=True)
                return
        leave(stage, code)


def leave(stage: Stage, code: int) -> None:
    """End the process here and now."""
    shutil.rmtree(stage.run.folder, ignore_errors=True)
    sys.stderr.flush()
    os._exit(code)
