"""Prewarm: bring models in before anybody asks, and remember which were in at the end.

    --prewarm NAME[,NAME...]    these models, NAME or NAME:VERSION
    --prewarm ./hot.txt         one a line; written anew when the server drains

Owns: the list and the pace. Must not: evict (it stops where the room ends), or go
before a request (its loads are not urgent: runtime/door.py, loader/turns.py).
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Protocol

import structlog

from loader.errors import LoadFailed
from loader.manifest import ModelSpec
from loader.model import Model
from runtime.cache import ModelCache
from runtime.errors import Refused
from runtime.residency import Stage

log = structlog.get_logger()

MOST = 10_000
TELL_EVERY = 20


class Loads(Protocol):
    """What prewarm asks of an engine (runtime/local.py)."""

    async def describe(self, model: str, version: str = "") -> ModelSpec:
        """The manifest."""
        ...

    async def load(
        self,
        model: str,
        version: str = "",
        deadline: float | None = None,
        urgent: bool = True,
    ) -> None:
        """Make resident."""
        ...


class Wishes:
    """What the setting says: names, or a file of them. Anything with a '/' is a file:
    no model's name has one."""

    def __init__(self, setting: str) -> None:
        self.file = Path(setting).expanduser() if "/" in setting else None
        self._names = [] if self.file else setting.split(",")

    def read(self) -> list[tuple[str, str]]:
        """(model, version), the dearest first; an empty version is the latest."""
        names = self._names
        if self.file is not None:
            try:
                names = self.file.read_text("utf-8").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                # The first start has none yet.
                log.info("nothing to prewarm", file=self.file.name, cause=repr(error))
        found = []
        for name in names[:MOST]:
            model, _, version = name.strip().partition(":")
            if model:
                found.append((model, version))
        return found

    def write(self, models: Sequence[tuple[str, str]]) -> None:
        """Remember for the next start. Whole or not at all; a failure is only told."""
        if self.file is None:
            return
        text = "".join(f"{model}:{version}\n" for model, version in models)
        part = Path(f"{self.file}.{os.getpid()}.part")
        try:
            part.write_text(text, "utf-8")
            part.replace(self.file)
        except OSError as error:
            log.warning("the resident set was not written", reason=error.strerror)
            with contextlib.suppress(OSError):
                part.unlink()
        else:
            log.info("resident set written", models=len(models))


def resident(cache: ModelCache[Model]) -> list[tuple[str, str]]:
    """Who is in, the last used first."""
    ready = [life for life in cache.residencies.values() if life.stage is Stage.READY]
    ready.sort(key=lambda life: -life.last_use)
    return [(life.spec.name, life.spec.version) for life in ready]


async def prewarm(
    wishes: Sequence[tuple[str, str]],
    engine: Loads,
    cache: ModelCache[Model],
    size: Callable[[ModelSpec], int],
) -> None:
    """One after the other, until all are in or one has no room."""
    log.info("prewarm begins", models=len(wishes))
    done = failed = 0
    for model, version in wishes:
        try:
            spec = await engine.describe(model, version)
            if spec.key not in cache.residencies and size(spec) > cache.ledger.free:
                log.info("prewarm ends, no room", done=done, failed=failed)
                return
            await engine.load(model, version, urgent=False)
        except (LoadFailed, Refused) as error:
            failed += 1
            log.warning("not prewarmed", model=model, reason=error.message)
            continue
        done += 1
        if done % TELL_EVERY == 0:
            log.info("prewarming", done=done, of=len(wishes), failed=failed)
    log.info("prewarm ends", done=done, failed=failed)


@contextlib.asynccontextmanager
async def prewarmed(
    setting: str,
    engine: Loads,
    cache: ModelCache[Model],
    size: Callable[[ModelSpec], int],
    residents: Sequence[tuple[str, str]] | None,
) -> AsyncIterator[None]:
    """Models come in behind our back: those of `residents`, or else what the setting
    says. Who was in at the end is written to the setting's file, if it names one."""
    if not setting and not residents:
        yield
        return
    wishes = Wishes(setting)
    wanted = wishes.read() if residents is None else residents
    task = asyncio.create_task(prewarm(wanted, engine, cache, size))
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        wishes.write(resident(cache))
