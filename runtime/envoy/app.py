"""What Envoy calls: the server, composed on the event loop that pyvoy runs; or a front
end of it (runtime/envoy/front.py), in a supervisor's child.

Owns: the composition inside Envoy, as runtime/compose.py's `serve` is the one of a
process of our own. Must not: hold logic; be imported by anything but Envoy.
"""

import asyncio
import os
import sys
from importlib.metadata import version
from pathlib import Path

import structlog

from loader.store import Store
from runtime import compose, logs, sources
from runtime.asgi.types import Asgi, Message, Receive, Send
from runtime.commands import Failed
from runtime.counts import Counts
from runtime.envoy import front
from runtime.envoy.run import VARIABLE, taken_over
from runtime.envoy.serving import serving_of
from runtime.envoy.stage import NotListening, Stage, Staged, first
from runtime.loading import Unservable
from runtime.metrics import Metrics
from runtime.nvml import GaugeUnavailable
from runtime.printable import one_line

log = structlog.get_logger()


async def program(stage: Stage) -> int:
    """Serve until told to stop; the exit code."""
    try:
        control = stage.run.control
        if control is not None:
            return await front.serve(stage, control)
        return await _serve(stage)
    except (Unservable, GaugeUnavailable, NotListening, Failed) as error:
        for line in str(error).splitlines():
            sys.stderr.write(f"hotset serve: {one_line(line)}\n")
    except Exception:
        log.exception("the server failed")
    return 1


async def _serve(stage: Stage) -> int:
    config = stage.run.config
    settings = sources.load(stage.run.flags, None if config is None else Path(config))
    logs.configure(settings.log_format, settings.log_level)
    log.info("starting", **settings.shown())
    for variable in sources.unknown_variables():
        log.warning("a variable that means nothing is ignored", variable=variable)
    lost = asyncio.Event()
    counts = Counts(settings.metrics_top)
    metrics = Metrics(counts, version("hotset"))
    async with compose.composed(settings, counts, lost.set) as engine:
        serving = serving_of(settings, engine, metrics, stage.admin)
        stage.open(serving.app)
        addresses = await stage.listening()
        store = Store.open(settings.store)
        async with compose.announced(engine, store, addresses[0], addresses[-1]):
            await first(stage.told, lost)
        await serving.stop()
    return compose.DEVICE_LOST if lost.is_set() else 0


async def validated(scope: Message, receive: Receive, send: Send) -> None:
    """`envoy --mode validate` asks for no more than a start."""
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await send({"type": "lifespan.shutdown.complete"})


app: Asgi = Staged(taken_over, program) if VARIABLE in os.environ else validated
