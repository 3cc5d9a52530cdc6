"""`hotset ls`: which models there are, in a store, in a server, or in both.

Owns: the listing. Must not: load a model, or read more of a store than manifests.
"""

import asyncio
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from loader.errors import LoadFailed
from loader.store import Store
from runtime.catalog import Catalog
from runtime.commands import Failed
from runtime.commands.remote import DEFAULT_URL, ask
from runtime.commands.units import size
from runtime.engine import Resident, Snapshot
from runtime.errors import Refused
from runtime.printable import one_line

AT_ONCE = 16
"""Manifests read at a time."""


class Form(StrEnum):
    """How the listing is written."""

    TABLE = "table"
    JSON = "json"


@dataclass(frozen=True, slots=True)
class Row:
    """One version of one model.

    `nbytes`: its weights file in the store; None where no store was asked or it cannot
    be read. `tiers`: what it holds of a server's memory and disk, by tier. `state` is
    empty where no server was asked.
    """

    name: str
    version: str
    nbytes: int | None
    state: str = ""
    tiers: Mapping[str, int] = field(default_factory=dict)
    note: str = ""
    code: str = ""
    """How a server runs its graph, if it tried to compile it."""


def ls(
    store: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="A store: a folder, or such as s3://bucket/prefix."
        ),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help=f"HTTP address of a server. Default without --store: {DEFAULT_URL}.",
        ),
    ] = None,
    prefix: Annotated[
        str, typer.Option(metavar="TEXT", help="Only names that begin so.")
    ] = "",
    limit: Annotated[
        int, typer.Option(min=1, help="Models of a store to list at most.")
    ] = 1000,
    form: Annotated[
        Form, typer.Option("--format", help="A table, or one JSON object a line.")
    ] = Form.TABLE,
) -> None:
    """List models with their bytes, and what a server makes of them.

    The models of a store, with all their versions:

        hotset ls --store ./store

        hotset ls --store s3://models/prod --prefix fraud-

    What a server holds; or a store, with what a server holds of it:

        hotset ls --url http://127.0.0.1:8080

        hotset ls --store ./store --url http://127.0.0.1:8080

    The column `file` is the weights file as it lies in the store. A column of its own
    for each tier of a server (cpu or cuda:0, host, disk) is what the model holds
    there: on the device its bytes as they are booked, a little more than the file.
    """
    console = Console()
    rows, more = _listed(console, store, url, prefix, limit)
    if form is Form.JSON:
        for row in rows:
            typer.echo(json.dumps(asdict(row)))
    else:
        console.print(table(rows, filed=store is not None))
    if more:
        typer.echo(f"there are more than {limit} models: see --limit", err=True)


def _listed(
    console: Console, store: str | None, url: str | None, prefix: str, limit: int
) -> tuple[Sequence[Row], bool]:
    """The rows, and whether the store has more models than `limit`."""
    held: Sequence[Row] = ()
    if url is not None or store is None:
        held = of_server(ask(url or DEFAULT_URL).snapshot)
    if store is None:
        return [row for row in held if row.name.startswith(prefix)], False
    with console.status("reading the store"):
        rows, more = asyncio.run(_of_store(store, prefix, limit))
    return (rows if url is None else joined(rows, held)), more


async def _of_store(url: str, prefix: str, limit: int) -> tuple[list[Row], bool]:
    """The rows of a store, and whether there are more models than `limit`."""
    try:
        store = Store.open(url)
    except ValueError as error:
        raise Failed(str(error)) from None
    catalog, more = Catalog(store), False
    names: list[str] = []
    try:
        async for name in store.models(prefix):
            if len(names) == limit:
                more = True
                break
            names.append(name)
    except LoadFailed as error:
        raise Failed(error.message) from None
    slots = asyncio.Semaphore(AT_ONCE)
    found = await asyncio.gather(*(_versions(catalog, n, slots) for n in sorted(names)))
    return [row for rows in found for row in rows], more


async def _versions(catalog: Catalog, name: str, slots: asyncio.Semaphore) -> list[Row]:
    """A row for each version; what cannot be read is a row that says why."""
    async with slots:
        rows, version = [], ""
        try:
            for version in await catalog.versions(name):
                spec = await catalog.find(name, version)
                rows.append(Row(name, version, spec.weights.size, note=_note(spec.pin)))
        except (LoadFailed, Refused) as error:
            rows.append(Row(name, version, None, note=error.message))
        return rows


def joined(rows: Iterable[Row], held: Iterable[Row]) -> list[Row]:
    """Rows of a store, each with the state that a server has it in."""
    known = {(row.name, row.version): row for row in held}
    return [
        replace(row, state=there.state, tiers=there.tiers, code=there.code)
        if (there := known.get((row.name, row.version)))
        else replace(row, state="-")
        for row in rows
    ]


def of_server(snapshot: Snapshot) -> list[Row]:
    """What a server holds: on the device, then what is one tier away."""
    return [
        *map(_of_resident, snapshot.residents),
        *(Row(k.name, k.version, None, "-", k.below) for k in snapshot.kept),
    ]


def _of_resident(resident: Resident) -> Row:
    return Row(
        resident.name,
        resident.version,
        None,
        resident.state,
        {resident.tier: resident.nbytes, **resident.below},
        _note(resident.pinned) or resident.reason,
        resident.code,
    )


def _note(pinned: bool) -> str:
    return "pinned" if pinned else ""


def table(rows: Sequence[Row], filed: bool) -> Table:
    """The listing for people. `filed`: a store was asked. Columns that would be empty
    are left out."""
    states = any(row.state for row in rows)
    tiers = list(dict.fromkeys(tier for row in rows for tier in row.tiers))
    made = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    made.add_column("model", overflow="fold")
    made.add_column("version")
    if filed:
        made.add_column("file", justify="right", no_wrap=True)
    if states:
        made.add_column("state")
    for tier in tiers:
        made.add_column(one_line(tier), justify="right", no_wrap=True)
    made.add_column("", overflow="fold")
    for row in rows:
        cells = [Text(one_line(row.name)), Text(one_line(row.version))]
        if filed:
            cells.append(Text("?" if row.nbytes is None else size(row.nbytes)))
        if states:
            cells.append(Text(one_line(row.state)))
        cells += [Text(size(row.tiers[t]) if t in row.tiers else "-") for t in tiers]
        said = ", ".join(filter(None, (row.note, row.code)))
        made.add_row(*cells, Text(one_line(said)))
    made.caption = _sums(rows, filed, tiers)
    made.caption_justify = "left"
    return made


def _sums(rows: Sequence[Row], filed: bool, tiers: Sequence[str]) -> str:
    """'3 in all: files 1.2 MiB, cpu 0.9 MiB'."""
    sums = [f"files {size(sum(row.nbytes or 0 for row in rows))}"] if filed else []
    for tier in tiers:
        held = sum(row.tiers.get(tier, 0) for row in rows)
        sums.append(f"{one_line(tier)} {size(held)}")
    return f"{len(rows)} in all" + (f": {', '.join(sums)}" if sums else "")
