"""Compiling, as the settings say.

Owns: making the compiler and its folder, and taking them apart in order. Must not: hold
logic of its own.
"""

import contextlib
import tempfile
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import structlog

from loader.code_cache import CodeCache, NotOurs
from loader.load import Loader
from loader.model import Model
from loader.threads import stand_back
from runtime.cache import ModelCache
from runtime.compiler import Compiler
from runtime.config import Settings
from runtime.lanes import Lanes
from runtime.loading import Unservable
from runtime.local import LocalEngine

log = structlog.get_logger()


@contextlib.asynccontextmanager
async def compiling(
    settings: Settings,
    loader: Loader,
    cache: ModelCache[Model],
    lanes: Lanes,
    engine: LocalEngine,
) -> AsyncIterator[None]:
    """`engine` has a compiler for as long as the block. Raises Unservable."""
    if lanes.device.type != "cpu":
        log.warning("nothing is compiled: --compile is for --device cpu so far")
        yield
        return
    with contextlib.ExitStack() as stack:
        threads = ThreadPoolExecutor(1, "compiler", stand_back)
        stack.callback(threads.shutdown)
        folder = settings.compile_cache or stack.enter_context(
            tempfile.TemporaryDirectory(prefix="hotset-code-")
        )
        try:
            kept = CodeCache(Path(folder))
        except NotOurs as error:
            raise Unservable(f"--compile-cache: {error}") from error
        except OSError as error:
            raise Unservable(f"--compile-cache: {error.strerror}") from error
        compiler = engine.compiler = Compiler(
            kept,
            threads,
            loader.graph_text,
            cache.lease,
            settings.compile_after,
            lanes.count + 1,  # a lane each, and the event loop
            engine.inventory.onednn_from,
        )
        engine.inventory.compiled = compiler.status
        engine.inventory.note = compiler.note
        try:
            yield
        finally:
            await compiler.aclose()
