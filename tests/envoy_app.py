"""A fake engine inside a real Envoy, steered from the test's process over a socket.

Owns: what runs in Envoy; its other side is tests/envoy_process.py. Each `begin` makes a
new engine and a new Serving in the same Envoy, which takes seconds to start; between
the two, if that is wanted, the seam of engines that are apart (runtime/link).
"""

import asyncio
import contextlib
import io
import os
import pickle
from pathlib import Path

from runtime.asgi.vigil import Vigil
from runtime.counts import Counts
from runtime.envoy.run import taken_over
from runtime.envoy.serving import Serving
from runtime.envoy.stage import Stage, Staged
from runtime.limits import Options
from runtime.metrics import Metrics
from runtime.rest import application
from runtime.rest_pages import ServerInfo
from tests.apart import apart
from tests.fake_engine import FakeEngine

SOCKET = "HOTSET_TEST_CONTROL"


def rebuilt(kind, args, state):
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(state)
    return error


class Pickler(pickle.Pickler):
    """Errors as they are, without calling what made them."""

    def reducer_override(self, value):
        if isinstance(value, BaseException):
            return rebuilt, (type(value), value.args, value.__dict__)
        return NotImplemented


def pickled(value) -> bytes:
    file = io.BytesIO()
    Pickler(file).dump(value)
    return file.getvalue()


class Theatre:
    """What the test may ask for, by name."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._serving: Serving | None = None
        self._between = contextlib.AsyncExitStack()
        self.engine = self._seam = FakeEngine()
        self.ends: list = []
        self.code = 0

    async def __call__(self, scope, receive, send) -> None:
        await self._serving.app(scope, receive, send)

    async def begin(self, options: Options, is_apart: bool = False) -> None:
        await self._between.aclose()
        self.engine, self.ends = FakeEngine(), []
        self._seam = self.engine
        if is_apart:
            between = apart(self.engine)
            self._seam, _ = await self._between.enter_async_context(between)
        vigil = self.vigil = Vigil()
        rest = application(
            self._seam,
            Metrics(Counts(10), "0"),
            ServerInfo("hotset", "0"),
            options.max_message_bytes,
            vigil,
        )
        self._serving = Serving(
            self._seam,
            rest,
            vigil,
            self._stage.admin,
            options,
            lambda *end: self.ends.append(end),
        )

    async def finish(self) -> int:
        """Cut what the test has left behind; how much that was."""
        left = len(self.vigil.open)
        self.vigil.cut()
        return left

    async def stop(self, grace: float | None) -> dict:
        await self._serving.stop(grace)
        engine = self.engine
        return {name: getattr(engine, name) for name in ("drained", "cancelled")}

    async def quit(self, code: int = 0) -> None:
        self.code = code
        self._stage.told.set()

    async def get(self, name: str):
        return getattr(self.engine, name)

    async def put(self, name: str, value) -> None:
        setattr(self.engine, name, value)
        if name == "ready":
            while self._seam.ready != value:  # noqa: ASYNC110 - it is told in a moment
                await asyncio.sleep(0)

    async def hold(self, free: bool) -> None:
        (self.engine.hold.set if free else self.engine.hold.clear)()

    async def told(self) -> list:
        return self.ends


async def program(stage: Stage) -> int:
    theatre = Theatre(stage)

    async def answer(reader, writer) -> None:
        name, args = pickle.loads(await reader.read())
        writer.write(pickled(await getattr(theatre, name)(*args)))
        await writer.drain()
        writer.close()

    await theatre.begin(Options())
    stage.open(theatre)
    addresses = await stage.admin.listening()
    async with await asyncio.start_unix_server(answer, os.environ[SOCKET]):
        told = Path(os.environ[SOCKET] + ".address")
        told.write_text(addresses[0])  # noqa: ASYNC240 - a dozen bytes
        await stage.told.wait()
    await theatre.begin(Options())  # without a seam: let go of the last one
    return theatre.code


app = Staged(taken_over, program)
