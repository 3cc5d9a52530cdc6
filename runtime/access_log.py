"""The access log: every request for a model, as `hotset simulate` and `plan` read it.

    time,model,nbytes,reload_s        seconds since the epoch; name:version; as of the
                                      last load, empty before the first

Owns: the file, its rotation (FILE and FILE.1, so at most twice the size) and the rows
not written yet. Must not: cost a request more than an append, or fail one: a disk that
is full costs rows, which are counted and told.
"""

import asyncio
import contextlib
import csv
import time
from collections.abc import AsyncIterator, Sequence
from io import StringIO
from pathlib import Path

import structlog

from eviction.policy import Policy

log = structlog.get_logger()

HEAD = "time,model,nbytes,reload_s\r\n"
EVERY_S = 1.0
MOST_PENDING = 200_000
"""Rows that wait for a slow disk; some 20 MiB. More are lost."""
MOST_KNOWN = 100_000
"""Models whose size and cost are kept for their rows."""

Row = tuple[float, str, tuple[int, float] | None]


class AccessLog:
    """A policy that notes each request; else it is the one it was given."""

    def __init__(self, path: Path, size: int, policy: Policy, epoch: float) -> None:
        self._path = path
        self._size = size
        self.policy = policy
        self._epoch = epoch
        """What to add to the loop's clock."""
        self._pending: list[Row] = []
        self._facts: dict[str, tuple[int, float]] = {}
        self.lost = 0

    def __repr__(self) -> str:
        return f"<AccessLog of {self.policy!r}: {len(self._pending)} pending>"

    def on_request(self, model: str, now: float, resident: bool) -> None:
        """Noted, and told on."""
        if len(self._pending) < MOST_PENDING:
            self._pending.append((now, model, self._facts.get(model)))
        else:
            self.lost += 1
        self.policy.on_request(model, now, resident)

    def on_load(self, model: str, nbytes: int, seconds: float, now: float) -> None:
        """Its next rows have this."""
        self._facts.pop(model, None)
        self._facts[model] = (nbytes, seconds)
        if len(self._facts) > MOST_KNOWN:
            del self._facts[next(iter(self._facts))]
        self.policy.on_load(model, nbytes, seconds, now)

    def on_evict(self, model: str, now: float) -> None:
        """Told on."""
        self.policy.on_evict(model, now)

    def forget(self, model: str) -> None:
        """Told on."""
        self._facts.pop(model, None)
        self.policy.forget(model)

    def density(
        self, models: Sequence[str], now: float, reload_s: Sequence[float]
    ) -> Sequence[float]:
        """The policy's."""
        return self.policy.density(models, now, reload_s)

    async def flush(self) -> None:
        """Write what is pending, in a thread."""
        rows, self._pending = self._pending, []
        if not rows:
            return
        try:
            await asyncio.to_thread(self._write, rows)
        except OSError as error:
            self.lost += len(rows)
            log.warning("access log not written", reason=error.strerror, lost=self.lost)

    def _write(self, rows: Sequence[Row]) -> None:
        text = StringIO()
        writer = csv.writer(text)
        for at, key, fact in rows:
            nbytes, load_s = ("", "") if fact is None else (fact[0], f"{fact[1]:.6f}")
            when = f"{self._epoch + at:.6f}"
            writer.writerow((when, key.partition("@")[0], nbytes, load_s))
        with contextlib.suppress(FileNotFoundError):
            if self._path.stat().st_size + len(text.getvalue()) > self._size:
                self._path.replace(f"{self._path}.1")
        with self._path.open("a", encoding="utf-8", newline="") as file:
            if file.tell() == 0:
                file.write(HEAD)
            file.write(text.getvalue())


@contextlib.asynccontextmanager
async def kept(path: str, size: int, policy: Policy) -> AsyncIterator[AccessLog]:
    """Written once a second while the block runs, and to the end when it is left."""
    epoch = time.time() - asyncio.get_running_loop().time()
    access = AccessLog(Path(path), size, policy, epoch)

    async def now_and_then() -> None:
        while True:
            await asyncio.sleep(EVERY_S)
            await access.flush()

    task = asyncio.create_task(now_and_then())
    try:
        yield access
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await access.flush()
