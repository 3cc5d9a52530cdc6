"""From a file of requests to a trace: CSV (also .gz) or Parquet, and a file of sizes.

Owns: the names of columns, and the sentence for each thing that is wrong. Must not:
replay anything. Everything after this works on a checked `Trace`.

Requests: a time (`time`, `t_seconds`, `timestamp`) and a model (`model`, `model_id`,
`name`); optionally `nbytes` and `reload_s`, the last of each model counts. This is also
what hotset's own access log has. Sizes: a model (`model`, `name`) and one of `nbytes`,
`size_mb`, `params_m` (millions of parameters, two bytes each); optionally `reload_s`.

A model the sizes do not name gets the size of one they do, drawn by the CRC of its
name: the same each time, and over many the file's distribution. The notes say so.
"""

import csv
import gzip
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice, pairwise
from math import isfinite
from pathlib import Path

from eviction.simulate.trace import Trace, TraceRefused

TIME = ("time", "t_seconds", "timestamp", "t")
MODEL = ("model", "model_id", "name", "id")
NBYTES = (("nbytes", 1.0), ("bytes", 1.0), ("size_mb", 1e6), ("params_m", 2e6))
RELOAD = ("reload_s", "load_s", "cost_s")

DEFAULT_NBYTES = 100_000_000
ROWS_MAX = 50_000_000


@dataclass(frozen=True, slots=True)
class Reload:
    """What a load takes where nothing was measured: `latency_s + nbytes / rate`."""

    latency_s: float = 0.25
    bytes_per_s: float = 2e9

    def of(self, nbytes: int) -> float:
        """Seconds for that many bytes."""
        return self.latency_s + nbytes / self.bytes_per_s


@dataclass(slots=True)
class _Models:
    """What is known of each model, in the order of first mention."""

    index: dict[str, int] = field(default_factory=dict)
    nbytes: dict[str, int] = field(default_factory=dict)
    reload_s: dict[str, float] = field(default_factory=dict)


def read_trace(
    path: Path, sizes: Path | None = None, reload: Reload | None = None
) -> tuple[Trace, list[str]]:
    """The trace, and what had to be assumed to make it one."""
    models = _Models()
    times, ids = _requests(path, models)
    notes = _fill_sizes(models, _sizes(sizes) if sizes is not None else {})
    notes += _fill_costs(models, reload or Reload())
    names = list(models.index)
    trace = Trace(
        path.name.split(".")[0],
        times,
        ids,
        names,
        [models.nbytes[name] for name in names],
        [models.reload_s[name] for name in names],
    )
    return trace, notes


def _fill_sizes(
    models: _Models, given: Mapping[str, tuple[int, float | None]]
) -> list[str]:
    """The file of sizes wins over the trace; what neither has is drawn or assumed."""
    pool = sorted(nbytes for nbytes, _ in given.values())
    drawn = assumed = 0
    for name in models.index:
        if name in given:
            nbytes, reload_s = given[name]
            models.nbytes[name] = nbytes
            if reload_s is not None:
                models.reload_s[name] = reload_s
        elif name not in models.nbytes:
            draw = zlib.crc32(name.encode())
            models.nbytes[name] = pool[draw % len(pool)] if pool else DEFAULT_NBYTES
            drawn += bool(pool)
            assumed += not pool
    notes = []
    if drawn:
        notes.append(f"{drawn} models are not in the sizes; theirs are drawn from it")
    if assumed:
        notes.append(f"{assumed} models have no size; 100 MB each is assumed")
    return notes


def _fill_costs(models: _Models, reload: Reload) -> list[str]:
    """Load times nobody measured, from the size."""
    unmeasured = [name for name in models.index if name not in models.reload_s]
    for name in unmeasured:
        models.reload_s[name] = reload.of(models.nbytes[name])
    if not unmeasured:
        return []
    return [
        f"{len(unmeasured)} models have no measured load time; taken as"
        f" {reload.latency_s:g} s + bytes / {reload.bytes_per_s / 1e9:g} GB/s"
    ]


@dataclass(frozen=True, slots=True)
class _Columns:
    """Which columns of a file of requests hold what."""

    when: str
    model: str
    nbytes: tuple[str, float] | None
    reload_s: str | None

    @classmethod
    def of(cls, path: Path, names: Sequence[str]) -> "_Columns":
        """As far as they can be told by name."""
        return cls(
            _one_of(path, names, TIME),
            _one_of(path, names, MODEL),
            next((pair for pair in NBYTES if pair[0] in names), None),
            next((name for name in RELOAD if name in names), None),
        )

    def read(self, row: Mapping[str, str], models: _Models) -> tuple[float, int]:
        """One request; what it says of its model is noted."""
        name, at = row[self.model], _number(row[self.when])
        if not name:
            raise ValueError("no model")
        if self.nbytes is not None and row[self.nbytes[0]]:
            column, unit = self.nbytes
            models.nbytes[name] = int(_number(row[column]) * unit)
        if self.reload_s is not None and row[self.reload_s]:
            models.reload_s[name] = _number(row[self.reload_s])
        return at, models.index.setdefault(name, len(models.index))


def _requests(path: Path, models: _Models) -> tuple[list[float], list[int]]:
    """Times and ids, sorted by time as servers write logs a little out of order."""
    rows: list[tuple[float, int]] = []
    columns: _Columns | None = None
    for number, row in enumerate(_rows(path), 2):
        if columns is None:
            columns = _Columns.of(path, tuple(row))
        try:
            rows.append(columns.read(row, models))
        except (ValueError, TypeError, KeyError) as error:
            raise TraceRefused(
                f"{path.name}: line {number} is not a request"
            ) from error
    if not rows:
        raise TraceRefused(f"{path.name}: no requests in it")
    if any(later[0] < earlier[0] for earlier, later in pairwise(rows)):
        rows.sort(key=lambda row: row[0])
    first = rows[0][0]
    return [at - first for at, _ in rows], [m for _, m in rows]


def _number(text: str) -> float:
    """A finite one: neither nan nor inf can be sorted, summed or waited for."""
    number = float(text)
    if not isfinite(number):
        raise ValueError(text)
    return number


def _sizes(path: Path) -> dict[str, tuple[int, float | None]]:
    """Bytes and, where measured, reload seconds by model."""
    found: dict[str, tuple[int, float | None]] = {}
    for number, row in enumerate(_rows(path), 2):
        columns = tuple(row)
        model = _one_of(path, columns, MODEL)
        size = next((pair for pair in NBYTES if pair[0] in columns), None)
        if size is None:
            names = ", ".join(name for name, _ in NBYTES)
            raise TraceRefused(f"{path.name}: no column of sizes; one of {names}")
        reload_s = next((name for name in RELOAD if name in columns), None)
        try:
            nbytes = max(1, int(_number(row[size[0]]) * size[1]))
            cost = _number(row[reload_s]) if reload_s and row[reload_s] else None
        except (ValueError, TypeError) as error:
            raise TraceRefused(f"{path.name}: line {number} is not a size") from error
        found[row[model]] = (nbytes, cost)
    return found


def _one_of(path: Path, columns: Sequence[str], wanted: Sequence[str]) -> str:
    for name in wanted:
        if name in columns:
            return name
    raise TraceRefused(
        f"{path.name}: none of the columns {', '.join(wanted)};"
        f" it has {', '.join(map(str, columns))[:200]}"
    )


def _rows(path: Path) -> Iterator[Mapping[str, str]]:
    """Every row as text by column; Parquet through pyarrow, an optional extra."""
    try:
        if path.suffix in (".parquet", ".pq"):
            yield from _parquet(path)
            return
        opened = gzip.open if path.suffix == ".gz" else open
        with opened(path, "rt", newline="", encoding="utf-8") as file:
            yield from islice(csv.DictReader(file), ROWS_MAX)
    except (OSError, UnicodeDecodeError, EOFError, csv.Error, zlib.error) as error:
        why = getattr(error, "strerror", None) or "it is not what its name says"
        raise TraceRefused(f"{path.name}: cannot be read: {why}") from error


def _parquet(path: Path) -> Iterator[Mapping[str, str]]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise TraceRefused(
            f"{path.name}: Parquet needs an extra: pip install 'hotset[sim]'"
        ) from error
    try:
        for batch in ParquetFile(path).iter_batches():
            for row in batch.to_pylist():
                yield {k: "" if v is None else str(v) for k, v in row.items()}
    except ArrowException as error:
        raise TraceRefused(f"{path.name}: it is not a Parquet file") from error
