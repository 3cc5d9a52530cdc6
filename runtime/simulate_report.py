"""What a simulation shows: tables on the terminal, a picture, a page to open.

Owns: the words and shapes. Must not: compute anything but ratios of what it is given.
matplotlib is an optional extra; without it the page has its tables only.
"""

import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from io import BytesIO
from pathlib import Path

from rich.console import Console
from rich.table import Table

from eviction.simulate.trace import Trace
from runtime.simulate import Cell

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>hotset simulate: {name}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem;
  padding: 0 1rem; color: #1d2733; }}
table {{ border-collapse: collapse; margin: 1rem 0; width: 100%; }}
th, td {{ padding: .3rem .6rem; text-align: right; border-bottom: 1px solid #dde3ea; }}
th:first-child, td:first-child {{ text-align: left; }}
tr.best td {{ font-weight: 600; background: #eef7ee; }}
img {{ max-width: 100%; }}
p.note {{ color: #5a6775; }}
</style></head><body>
<h1>hotset simulate: {name}</h1>
<p>{requests:,} requests for {models:,} models of {gib:.2f} GiB together.</p>
{notes}{picture}{tables}
</body></html>
"""

HEADINGS = ("policy", "requests missed", "bytes missed", "loading", "loading, LRU = 1")
WAITS = ("mean wait", "p99 wait")
"""Columns of their own, where somebody asked for waits."""


def budgets_of(cells: Sequence[Cell]) -> list[tuple[float, int]]:
    """Share and bytes of each budget, smallest first."""
    return sorted({(cell.share, cell.budget) for cell in cells})


def headings_of(cells: Sequence[Cell]) -> tuple[str, ...]:
    """What there is to show."""
    return HEADINGS + (WAITS if any(cell.wait for cell in cells) else ())


def rows_at(cells: Sequence[Cell], budget: int) -> list[tuple[str, ...]]:
    """The rows of one table, the cheapest first."""
    with_waits = len(headings_of(cells)) > len(HEADINGS)
    here = sorted((c for c in cells if c.budget == budget), key=lambda c: c.missed_cost)
    lru = next((c.missed_cost for c in here if c.policy == "lru"), 0.0)
    rows: list[tuple[str, ...]] = []
    for cell in here:
        misses = cell.misses
        rows.append(
            (
                cell.policy,
                f"{misses.object_ratio:.2%}" if misses else "",
                f"{misses.byte_ratio:.2%}" if misses else "",
                f"{cell.missed_cost:,.1f} s",
                f"{cell.missed_cost / lru:.3f}" if lru else "",
                *(_waited(cell) if with_waits else ()),
            )
        )
    return rows


def _waited(cell: Cell) -> tuple[str, str]:
    if cell.wait is None:
        return "", ""
    return f"{cell.wait.mean_s * 1e3:,.1f} ms", f"{cell.wait.p99_s:.3f} s"


def title_of(share: float, budget: int) -> str:
    """What stands above a table."""
    return f"{budget / 2**30:.2f} GiB, {share:.0%} of all models"


def show(console: Console, cells: Sequence[Cell]) -> None:
    """One table a budget."""
    for share, budget in budgets_of(cells):
        table = Table(title=title_of(share, budget), title_justify="left")
        for i, heading in enumerate(headings_of(cells)):
            table.add_column(heading, justify="right" if i else "left")
        for row in rows_at(cells, budget):
            table.add_row(*row)
        console.print(table)


def as_json(trace: Trace, notes: Sequence[str], cells: Sequence[Cell]) -> object:
    """The same for a program."""
    return {
        "trace": trace.name,
        "requests": len(trace),
        "models": len(trace.names),
        "nbytes": trace.total_bytes,
        "notes": list(notes),
        "cells": [
            {
                "policy": cell.policy,
                "share": cell.share,
                "budget": cell.budget,
                "missed_cost_s": cell.missed_cost,
                "object_ratio": cell.misses.object_ratio if cell.misses else None,
                "byte_ratio": cell.misses.byte_ratio if cell.misses else None,
                "cost_ratio": cell.misses.cost_ratio if cell.misses else None,
                "evictions": cell.misses.evictions if cell.misses else None,
                "wait": asdict(cell.wait) if cell.wait else None,
            }
            for cell in cells
        ],
    }


def picture(cells: Sequence[Cell]) -> bytes | None:
    """Seconds of loading by budget, a line a policy; None without matplotlib."""
    lines: dict[str, tuple[list[float], list[float]]] = {}
    for cell in sorted(cells, key=lambda c: c.budget):
        xs, ys = lines.setdefault(cell.policy, ([], []))
        xs.append(cell.budget / 2**30)
        ys.append(cell.missed_cost)
    return plot(lines, "cache, GiB", "seconds of loading")


def plot(
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    across: str,
    upwards: str,
) -> bytes | None:
    """Lines by name on logarithmic scales where the values allow it."""
    try:
        import matplotlib
    except ImportError:
        return None
    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.6), layout="constrained")
    axis = figure.subplots()
    for name, (xs, ys) in lines.items():
        future = name in ("belady", "belady-cost", "packed", "lp")
        axis.plot(
            xs,
            ys,
            marker="o",
            markersize=4,
            linestyle=":" if future else "-",
            linewidth=2.4 if name == "tournament" else 1.2,
            label=name,
        )
    if all(y > 0 for _, ys in lines.values() for y in ys):
        axis.set_yscale("log")
    axis.set(xlabel=across, ylabel=upwards)
    axis.grid(alpha=0.3, which="both")
    axis.legend(fontsize=8)
    out = BytesIO()
    figure.savefig(out, format="png", dpi=130)
    return out.getvalue()


def write_page(
    path: Path, trace: Trace, notes: Sequence[str], cells: Sequence[Cell]
) -> None:
    """One file, nothing fetched from anywhere; names from the trace are escaped."""
    image = picture(cells)
    path.write_text(
        _PAGE.format(
            name=html.escape(trace.name),
            requests=len(trace),
            models=len(trace.names),
            gib=trace.total_bytes / 2**30,
            notes="".join(f'<p class="note">{html.escape(n)}.</p>' for n in notes),
            picture=(
                '<img alt="seconds of loading by budget" src="data:image/png;base64,'
                f'{base64.b64encode(image).decode()}">'
                if image
                else ""
            ),
            tables="".join(
                f"<h2>{html.escape(title_of(share, budget))}</h2>"
                + _table(headings_of(cells), rows_at(cells, budget))
                for share, budget in budgets_of(cells)
            ),
        ),
        encoding="utf-8",
    )


def _table(headings: Sequence[str], rows: Sequence[tuple[str, ...]]) -> str:
    head = "".join(f"<th>{html.escape(h)}</th>" for h in headings)
    body = "".join(
        f'<tr class="{"best" if row[0] == "tournament" else ""}">'
        + "".join(f"<td>{html.escape(value)}</td>" for value in row)
        + "</tr>"
        for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"
