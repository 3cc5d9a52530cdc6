"""`hotset top`: what a server holds and does, as it goes.

Owns: the terminal, the keys, the refreshing. Must not: draw (picture.py does).
"""

import contextlib
import os
import select
import sys
import time
from collections.abc import Callable, Iterator
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live

from runtime.commands import Failed
from runtime.commands.picture import Sort, frame
from runtime.commands.remote import DEFAULT_URL, ask
from runtime.report import Report

HEAD_ROWS = 9
"""Lines above the table's first row, and the prompt below it."""


def top(
    url: Annotated[
        str, typer.Option(metavar="URL", help="HTTP address of the server.")
    ] = DEFAULT_URL,
    interval: Annotated[
        float, typer.Option(min=0.1, help="Time between two looks, in seconds.")
    ] = 1.0,
    sort: Annotated[
        Sort, typer.Option(help="Order of the table; idle: last used first.")
    ] = Sort.USES,
    once: Annotated[
        bool, typer.Option("--once", help="Show one picture, whole, and end.")
    ] = False,
) -> None:
    """Watch a running server: its memory, its traffic, and every resident model.

    Keys: q ends, s changes the order.

        hotset top

        hotset top --url http://gpu-7:8080 --sort size

        hotset top --once > snapshot.txt
    """
    console = Console()
    report = ask(url)
    if once:
        console.print(frame(report, None, sort, None))
        return
    with keyboard() as pressed, Live(console=console, screen=True) as live:
        _watch(live, pressed, url, interval, sort, report)


def _watch(
    live: Live,
    pressed: Callable[[float], str],
    url: str,
    interval: float,
    sort: Sort,
    report: Report,
) -> None:
    """Until q. A server that goes away is said to be gone, and looked for again."""
    before: Report | None = None
    trouble = ""
    while True:
        rows = max(1, live.console.height - HEAD_ROWS)
        live.update(frame(report, before, sort, rows, trouble), refresh=True)
        key = pressed(interval)
        if key == "q":
            return
        if key == "s":
            sort = _after(sort)
            continue
        try:
            report, before, trouble = ask(url), report, ""
        except Failed as error:
            trouble = str(error)


def _after(sort: Sort) -> Sort:
    orders = list(Sort)
    return orders[(orders.index(sort) + 1) % len(orders)]


@contextlib.contextmanager
def keyboard() -> Iterator[Callable[[float], str]]:
    """Gives a function that waits so many seconds for a key ('' if none comes)."""
    if not sys.stdin.isatty():
        yield _wait
        return
    import termios
    import tty

    def pressed(seconds: float) -> str:
        ready, _, _ = select.select([terminal], [], [], seconds)
        if not ready:
            return ""
        # Not sys.stdin.read: what it buffers, select does not see. Nothing to read on
        # a terminal that is ready: it was closed, and nobody is watching any more.
        return os.read(terminal, 1).decode("ascii", "replace").lower() or "q"

    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)
    try:
        tty.setcbreak(terminal)
        yield pressed
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)


def _wait(seconds: float) -> str:
    """No keyboard: just the time passes."""
    time.sleep(seconds)
    return ""
