"""Where a packed model goes: a folder, or a bucket.

Owns: the way there, and the order in which files appear. Must not: pack.
"""

import asyncio
import tempfile
from collections.abc import Callable
from pathlib import Path

from loader.errors import LoadFailed
from loader.pack import Packed
from loader.store import Store
from runtime.commands import Failed


def placed(out: str, write: Callable[[Path], Packed]) -> Packed:
    """Write into a folder; for a bucket, beside it, and then send the files."""
    if "://" not in out or out.startswith("file://"):
        return write(Path(out.removeprefix("file://")).expanduser())
    try:
        store = Store.open(out)
        with tempfile.TemporaryDirectory(prefix="hotset-pack-") as folder:
            packed = write(Path(folder))
            asyncio.run(_sent(store, packed))
            return packed
    except ValueError as error:
        raise Failed(str(error)) from None
    except LoadFailed as error:
        raise Failed(error.message) from error


async def _sent(store: Store, packed: Packed) -> None:
    """Upload. The manifest goes last: with it, the model is there, whole."""
    spec = packed.spec
    place = f"{spec.name}/{spec.version}"
    _, objects = await store.children(f"{place}/")
    if "model.json" in objects:
        raise Failed(f"{place} is there already; a version is never overwritten")
    for name in (spec.weights.name, spec.graph.name, "model.json"):
        await store.put(f"{place}/{name}", (packed.directory / name).read_bytes())
