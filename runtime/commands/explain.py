"""`hotset explain`: why a model is in memory or not, and who would leave for it.

Owns: how that is shown. Must not: find it out (the server does).
"""

import json
from collections.abc import Iterator, Sequence
from typing import Annotated
from urllib.parse import quote

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from runtime.commands import Failed
from runtime.commands.remote import DEFAULT_URL, fetch
from runtime.commands.units import age, size
from runtime.explanation import Event, Explanation, NotAnExplanation, Ranked, decode
from runtime.printable import one_line

MOST_SHOWN = 20


def explain(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Its name.")],
    version: Annotated[
        str, typer.Option(help="Version of the model. Default: the latest.")
    ] = "",
    url: Annotated[
        str, typer.Option(metavar="URL", help="HTTP address of the server.")
    ] = DEFAULT_URL,
    as_json: Annotated[
        bool, typer.Option("--json", help="All there is, as JSON.")
    ] = False,
) -> None:
    """Say why a model is in memory, or why it left, and what it would push out now.

        hotset explain digits-mlp-007

        hotset explain digits-mlp-007 --json | jq .ranking

    Nothing is loaded or evicted: what would be pushed out is a dry run. Density is what
    the policy goes by: the expected seconds of waiting that a byte saves while it
    stays; the lowest leaves first.
    """
    path = f"/hotset/explain/{quote(model, safe='')}?version={quote(version, safe='')}"
    status, body = fetch(url, path)
    if status != 200:
        raise Failed(_refusal(url, status, body))
    try:
        found = decode(body)
    except NotAnExplanation as error:
        raise Failed(f"{url} does not answer like hotset: {error}") from None
    if as_json:
        typer.echo(body)
        return
    console = Console()
    for line in _lines(found):
        console.print(Text(one_line(line)))
    if found.would_push_out:
        console.print(_ranking("it would push out", found.would_push_out))
    if found.ranking:
        console.print(_ranking("who leaves first", found.ranking[:MOST_SHOWN]))
    if found.history:
        console.print(_history(found))


def _refusal(url: str, status: int, body: bytes) -> str:
    try:
        said = json.loads(body)["error"]
    except (ValueError, KeyError, TypeError):
        return f"{url} answers {status}: is it hotset?"
    return str(said)


def _lines(found: Explanation) -> Iterator[str]:
    yield f"{found.model}:{found.version} is {found.state}: {found.because}"
    yield _numbers(found)
    if found.price:
        yield f"a byte costs {_density(found.price)} here ({found.policy})"
    if found.spiral:
        yield "models are wanted back as soon as they leave: newcomers may have to wait"
    if found.short:
        yield f"asked for now, it would have to wait: {size(found.short)} are missing"
    elif found.state == "UNAVAILABLE" and not found.would_push_out:
        yield "asked for now, it would push nobody out"


def _numbers(found: Explanation) -> str:
    told = [size(found.nbytes), f"{found.reload_s:.3g} s to bring in"]
    if found.density is not None:
        told.append(f"density {_density(found.density)}")
    if found.pinned:
        told.append("pinned")
    if found.priority:
        told.append(f"priority {found.priority}")
    if found.tenant:
        told.append(f"tenant {found.tenant}")
    return ", ".join(told)


def _density(value: float) -> str:
    """Per GiB: a byte's worth has too many zeros."""
    return f"{value * 2**30:.3g} s/GiB"


def _ranking(title: str, ranking: Sequence[Ranked]) -> Table:
    table = Table(title=title, title_justify="left", box=None)
    for column in ("model", "size", "density", "reload", "idle"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for one in ranking:
        table.add_row(
            Text(one_line(f"{one.name}:{one.version}")),
            size(one.nbytes),
            _density(one.density),
            f"{one.reload_s:.3g} s",
            age(one.idle_s),
        )
    return table


def _history(found: Explanation) -> Table:
    table = Table(title="what happened, newest first", title_justify="left", box=None)
    for column in ("ago", "what", "model", "why"):
        table.add_column(column)
    for event in list(reversed(found.history))[:MOST_SHOWN]:
        table.add_row(
            age(event.ago_s),
            event.what,
            Text(one_line(f"{event.model}:{event.version}")),
            Text(one_line(_why(event))),
        )
    return table


def _why(event: Event) -> str:
    if event.what == "loaded":
        return f"{size(event.nbytes)} in {event.load_s or 0.0:.3g} s"
    why = event.reason
    if event.cause:
        why += f", for {event.cause}"
    if event.rank is not None and event.density is not None:
        why += f"; number {event.rank + 1} of {event.ranked}"
        why += f", density {_density(event.density)}"
    return why
