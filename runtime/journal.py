"""The journal: the policy's history in a file, from one process to the next.

    {"format": 1, "costs": {tier: {"wait", "pace"}}, "story": {"facts", "requests"}}

Owns: that file, whole or not at all. Must not: fail a start: a journal that cannot be
read is left aside with a line in the log, and the server starts as one that knows
nothing yet.
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Literal

import structlog
from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_json

from eviction.costs import Cost, Costs
from eviction.history import REQUESTS, Remembering, Story

log = structlog.get_logger()

LARGEST = 64 << 20
"""Bytes; ten times what 10,000 requests of as many models take."""
EVERY_S = 300.0
"""A process that is killed loses at most so much."""


@dataclass(frozen=True, slots=True)
class Journal:
    """All there is in the file."""

    format: Literal[1]
    costs: Mapping[str, Cost]
    story: Story


_journal = TypeAdapter(Journal)


class NotAJournal(ValueError):
    """The file is none, or says what cannot be."""


def read(path: Path) -> Journal | None:
    """What the last process wrote; None if there is nothing to be had."""
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
        found = _parse(data)
    except FileNotFoundError:
        log.info("no history yet", file=path.name)
        return None
    except (OSError, NotAJournal) as error:
        log.warning("history ignored", file=path.name, reason=str(error))
        return None
    log.info("history read", file=path.name, requests=len(found.story.requests))
    return found


def _parse(data: bytes) -> Journal:
    if len(data) > LARGEST:
        raise NotAJournal("it is too large")
    try:
        found = _journal.validate_json(data)
    except ValidationError:
        raise NotAJournal("it is not a journal of this version") from None
    facts, requests = found.story.facts, found.story.requests
    if len(requests) > REQUESTS or any(f.nbytes < 0 for f in facts):
        raise NotAJournal("it says what cannot be")
    last = float("inf")
    for ago, index in requests:
        if not (0 <= ago <= last and isfinite(ago) and 0 <= index < len(facts)):
            raise NotAJournal("it says what cannot be")
        last = ago
    return found


def write(path: Path, story: Story, costs: Mapping[str, Cost]) -> None:
    """Whole or not at all; a failure is only told."""
    part = Path(f"{path}.{os.getpid()}.part")
    try:
        part.write_bytes(to_json(Journal(1, costs, story)))
        part.replace(path)
    except OSError as error:
        log.warning("history was not written", reason=error.strerror)
        with contextlib.suppress(OSError):
            part.unlink()


@contextlib.asynccontextmanager
async def kept(path: str, policy: Remembering, costs: Costs) -> AsyncIterator[None]:
    """Written now and then, and at the end."""
    clock = asyncio.get_running_loop().time

    async def save() -> None:
        story = policy.story(clock())
        await asyncio.to_thread(write, Path(path), story, costs.believed())

    async def now_and_then() -> None:
        while True:
            await asyncio.sleep(EVERY_S)
            await save()

    task = asyncio.create_task(now_and_then())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await save()


def recall(path: str, policy: Remembering, costs: Costs, capacity: int) -> None:
    """Tell a new policy what the last process knew, if it left a journal."""
    found = read(Path(path))
    if found is None:
        return
    costs.believe(found.costs)
    policy.relive(found.story, capacity, asyncio.get_running_loop().time())
