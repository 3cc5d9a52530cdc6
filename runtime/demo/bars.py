"""How the demo's progress bars look.

Owns: their columns. Must not: know what is going on.
"""

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
)


def bars(console: Console) -> Progress:
    """Bars whose tasks have one field, `said`: a word on what happens just now."""
    return Progress(
        TextColumn("{task.description:<10}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[said]}", style="dim"),
        console=console,
    )
