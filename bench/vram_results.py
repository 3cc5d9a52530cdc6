"""What `bench.vram` saw: gigabytes a second, ratios, goals, the table.

Owns: these. Must not: measure.
"""

from statistics import median

import torch
from rich.table import Table

from bench.load_peers import HOTSET
from bench.load_results import LOCAL, Plan, Results, details
from bench.result import Figure, console, rounded, versions
from bench.vram_peers import CEILING, WARM
from bench.vram_swaps import Swapped

HOST = "host tier"
SOURCES = (HOST, LOCAL)
PEERS = ("fastsafetensors", "instanttensor", "runai-model-streamer", "safetensors",
         "nvidia-ml-py")  # fmt: skip
"""Packages whose versions belong to the result."""
JUDGED = 200
"""MB: large enough for the link, not the call, to be what is measured."""


def source_of(name: str) -> str:
    """What a loader is compared in."""
    return HOST if name in (CEILING, WARM) else LOCAL


def rate(size: int, seconds: float) -> float:
    """GB a second, of so many MB."""
    return size / 1e3 / seconds


def figures(
    results: Results, swapped: Swapped | None, device: torch.device
) -> dict[str, Figure]:
    """All that was measured. Goals are for a GPU: a CPU only shows that it runs."""
    gpu = device.type == "cuda"
    found: dict[str, Figure] = {}
    for size in sorted({mb for _, mb, _ in results.seen}):
        ceiling, warm = (results.time(HOST, size, who) for who in (CEILING, WARM))
        cold, best = results.time(LOCAL, size, HOTSET), results.best(LOCAL, size)
        names = {"ceiling": ceiling, "host": warm, "cold": cold, "cold_best_peer": best}
        for name, seconds in names.items():
            if seconds:
                value = rate(size, seconds)
                found[f"{name}_{size}mb"] = Figure(value, "GB/s", None, "higher")
        if ceiling and warm:
            goal = 0.9 if gpu and size == JUDGED else None
            share = Figure(ceiling / warm, "x", goal, "higher")
            found[f"host_{size}mb_to_ceiling"] = share
        if cold and best:
            found[f"cold_{size}mb_time_to_best_peer"] = Figure(cold / best, "x")
    if swapped is not None:
        found["swaps"] = Figure(swapped.swaps, "", None, "higher")
        found["drift"] = Figure(swapped.drift, "of budget", 0.02 if gpu else None)
    return found


def said(results: Results, plan: Plan, swapped: Swapped | None) -> dict[str, object]:
    """For the JSON: every round, who was absent and why, versions, the drift."""
    return {
        **details(results, plan),
        "peers": versions(PEERS),
        "cuda": torch.version.cuda,
        "swaps": swapped.shown() if swapped else None,
    }


def show(results: Results) -> None:
    """Medians with the spread, as a table."""
    sizes = sorted({mb for _, mb, _ in results.seen})
    for source in SOURCES:
        names = dict.fromkeys(n for where, _, n in results.seen if where == source)
        if not names:
            continue
        table = Table(source, *(f"{mb} MB, GB/s (ms)" for mb in sizes))
        for name in names:
            table.add_row(name, *(cell(results, source, mb, name) for mb in sizes))
        console.print(table)
    for name, why in results.absent.items():
        console.print(f"not measured: {name}: {why}", markup=False)


def cell(results: Results, source: str, size: int, name: str) -> str:
    """Median [slowest to quickest] (milliseconds)."""
    seen = results.seen.get((source, size, name))
    if seen is None:
        return "-"
    low, high = (rate(size, s) for s in (max(seen.seconds), min(seen.seconds)))
    middle = median(seen.seconds)
    spread = f"{low:.3g} to {high:.3g}"
    return f"{rate(size, middle):.3g} [{spread}] ({rounded(middle * 1e3):.3g})"
