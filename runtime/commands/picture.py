"""What `hotset top` shows: one report as a picture.

Owns: the layout, and the rates between two reports. Must not: ask a server, or touch a
terminal. What the server already tells is not computed again here.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from runtime.commands.units import age, share, size
from runtime.engine import Resident, Snapshot
from runtime.printable import one_line
from runtime.report import Report

BAR = 40
"""Characters of the memory bar."""
STATE_STYLES = {"READY": "green", "LOADING": "yellow", "UNLOADING": "magenta"}


class Sort(StrEnum):
    """What the table is ordered by."""

    SIZE = "size"
    USES = "uses"
    IDLE = "idle"
    NAME = "name"
    STATE = "state"


ORDERS: Mapping[Sort, Callable[[Resident], tuple[float | str, str]]] = {
    Sort.SIZE: lambda r: (-r.nbytes, r.name),
    Sort.USES: lambda r: (-r.uses, r.name),
    Sort.IDLE: lambda r: (r.idle_s, r.name),
    Sort.NAME: lambda r: (r.name, r.version),
    Sort.STATE: lambda r: (r.state, r.name),
}


def frame(
    report: Report,
    before: Report | None,
    sort: Sort,
    rows: int | None,
    trouble: str = "",
) -> RenderableType:
    """One picture. `before`: the last report, for rates; `rows`: None for all."""
    snapshot = report.snapshot
    shown = sorted(snapshot.residents, key=ORDERS[sort])
    cut = shown if rows is None else shown[:rows]
    parts: list[RenderableType] = [_title(report, trouble), _memory(snapshot)]
    parts.append(_traffic(snapshot, rates(report, before)))
    parts.append(_table(cut, sort, [t.name for t in snapshot.tiers.below]))
    if len(cut) < len(shown):
        parts.append(Text(f"and {len(shown) - len(cut)} more", style="dim"))
    return Group(*parts)


def _title(report: Report, trouble: str) -> RenderableType:
    about, snapshot = report.about, report.snapshot
    text = Text(one_line(f"{about.name} {about.version}"), style="bold")
    text.append(f"  {snapshot.device}  policy {snapshot.policy}", style="default")
    text.append(f"  up {age(snapshot.uptime_s)}  ", style="dim")
    if trouble:
        text.append(one_line(trouble), style="bold red")
    elif about.ready:
        text.append("ready", style="green")
    else:
        text.append("not ready", style="bold red")
    return text


def _memory(snapshot: Snapshot) -> RenderableType:
    held, capacity = snapshot.held, snapshot.capacity
    text = Text("memory   ")
    # Plain characters: the picture may be piped into a file of any encoding.
    filled = min(BAR, round(BAR * held / capacity)) if capacity else BAR
    text.append("#" * filled, style="red" if held > capacity else "cyan")
    text.append("." * (BAR - filled), style="dim")
    text.append(f"  {size(held)} of {size(capacity)} ({share(held, capacity)})\n")
    text.append(f"         peak {size(snapshot.peak_held)}")
    if snapshot.measured is not None:
        how = "measured" if snapshot.gauge_up else "estimated"
        text.append(f"   device {size(snapshot.measured)} {how}, all processes")
    for tier in snapshot.tiers.below:  # on this line: the picture must stay as high
        name = one_line(tier.name)
        text.append(f"   {name} {size(tier.held)} of {size(tier.capacity)}")
        if not tier.up:
            text.append(" failing", style="red")
    return text


@dataclass(frozen=True, slots=True)
class Rates:
    """What happened a second between two reports; None where only one is known."""

    requests: float | None = None
    hits: str = "-"
    loads: float | None = None
    evictions: float | None = None


def rates(report: Report, before: Report | None) -> Rates:
    """The rates between two reports of one run of a server, by its own clock."""
    if before is None:
        return Rates()
    now, then = report.snapshot, before.snapshot
    seconds = now.uptime_s - then.uptime_s
    if seconds <= 0:  # another run
        return Rates()
    answered = sum(now.requests.values()) - sum(then.requests.values())
    return Rates(
        requests=answered / seconds,
        hits=share(now.requests["hit"] - then.requests["hit"], answered),
        loads=(now.loads - then.loads) / seconds,
        evictions=(now.evictions - then.evictions) / seconds,
    )


def _traffic(snapshot: Snapshot, now: Rates) -> RenderableType:
    answered = sum(snapshot.requests.values())
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column("")
    for title in ("requests", "hits", "loads", "evictions", "failed", "waiting"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_row(
        "a second",
        _rate(now.requests),
        now.hits,
        _rate(now.loads),
        _rate(now.evictions),
        "",
        str(snapshot.waiting),
    )
    table.add_row(
        "in all",
        str(answered),
        share(snapshot.requests["hit"], answered),
        str(snapshot.loads),
        str(snapshot.evictions),
        str(snapshot.failures),
        "",
    )
    return table


def _rate(rate: float | None) -> str:
    return "-" if rate is None else f"{rate:.1f}"


def _table(residents: Sequence[Resident], sort: Sort, below: Sequence[str]) -> Table:
    """`below`: the tiers below the device, a column each."""
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    # The name gives way where the screen is narrow: only what may wrap is shortened.
    table.add_column(_heading("model", sort, Sort.NAME), overflow="ellipsis")
    table.add_column("version", no_wrap=True)
    table.add_column(_heading("state", sort, Sort.STATE), no_wrap=True)
    table.add_column(_heading("size", sort, Sort.SIZE), justify="right", no_wrap=True)
    table.add_column("tier", no_wrap=True)
    for tier in below:
        table.add_column(one_line(tier), justify="right", no_wrap=True)
    table.add_column(_heading("uses", sort, Sort.USES), justify="right", no_wrap=True)
    table.add_column("leases", justify="right", no_wrap=True)
    table.add_column(_heading("idle", sort, Sort.IDLE), justify="right", no_wrap=True)
    table.add_column("", overflow="ellipsis")
    for resident in residents:
        table.add_row(
            Text(one_line(resident.name)),
            Text(one_line(resident.version)),
            Text(resident.state, style=STATE_STYLES.get(resident.state, "red")),
            size(resident.nbytes),
            Text(one_line(resident.tier)),
            *(size(resident.below[t]) if t in resident.below else "-" for t in below),
            str(resident.uses),
            str(resident.leases),
            age(resident.idle_s) if resident.uses else "unused",
            Text("pinned" if resident.pinned else one_line(resident.reason)),
        )
    return table


def _heading(title: str, sort: Sort, order: Sort) -> str:
    return f"{title} *" if sort is order else title
