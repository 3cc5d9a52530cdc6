"""Census: what a store looks like when the server starts.

Owns: one bounded look, and the sentence about it. Must not: keep anything, or hold up
the start: a store that cannot be listed may serve all the same.
"""

import asyncio
from dataclasses import dataclass

import structlog

from loader.errors import LoadFailed, ModelNotFound
from loader.store import Store
from runtime.catalog import Catalog
from runtime.errors import Refused

log = structlog.get_logger()

LOOK_AT = 1000
"""Names at most: a bucket may have a million."""
TRY = 5
"""Of the first names, to see whether they are models at all."""
PATIENCE_S = 20.0


@dataclass(frozen=True, slots=True)
class Seen:
    """`models`: names at the top of the store; `more`: there are others. `strange`:
    none of the first few is a model."""

    models: int
    more: bool = False
    strange: bool = False


async def look(store: Store) -> Seen:
    """One listing, cut short. Raises LoadFailed."""
    names: list[str] = []
    async for name in store.models():
        if len(names) == LOOK_AT:
            return Seen(LOOK_AT, more=True)
        names.append(name)
    # Nothing but numbers: these are versions, and the store is the folder above.
    numbers = bool(names) and all(name.isdecimal() for name in names)
    strange = numbers or not await _any_model(store, names[:TRY])
    return Seen(len(names), strange=strange)


async def _any_model(store: Store, names: list[str]) -> bool:
    catalog = Catalog(store)
    for name in names:
        try:
            await catalog.versions(name)
        except (ModelNotFound, Refused):
            continue
        return True
    return False


async def tell(store: Store) -> None:
    """Say in the log how many models there are to serve, or what looks wrong."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            seen = await look(store)
    except TimeoutError:
        log.warning("the store did not list its models in time", seconds=PATIENCE_S)
    except LoadFailed as error:
        log.warning("the store could not be listed", reason=error.message)
    else:
        _say(seen)


def _say(seen: Seen) -> None:
    if not seen.models:
        log.warning("the store looks empty: models lie at NAME/VERSION/model.json")
    elif seen.strange:
        log.warning(
            "the store has no model where one is looked for: at NAME/VERSION/model.json"
            " below --store",
            names=seen.models,
        )
    else:
        log.info("models in the store", models=seen.models, at_least=seen.more)
