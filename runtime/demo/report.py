"""The summary: what was measured, and which checks hold.

Owns: the checks, their limits, and how the end of the demo looks. Must not: measure,
or stop at the first failed check.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.table import Table

from runtime.demo.oracle import Verdicts
from runtime.demo.stream import TEMPERATURES, Answers, Stream

LEAST_ACCURACY = 0.95
LEAST_RATIO = 4.0
"""The models together are at least so many times as large as the budget."""

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds at the client, of the answers that met their model one way."""

    count: int
    p50: float
    p99: float


@dataclass(frozen=True, slots=True)
class Served:
    """What the server said of itself. `peak` is its status' account, `most_seen` the
    most that its metrics and our looks while the stream ran have shown; `exit_code`
    None: it did not end by itself."""

    device: str
    policy: str
    capacity: int
    peak: int
    most_seen: int
    loads: int
    evictions: int
    exit_code: int | None


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that must be true, and what was found."""

    claim: str
    found: str
    holds: bool


@dataclass(frozen=True, slots=True)
class Summary:
    """Everything the end of the demo tells.

    `rate` (answers a second) and `crowded` are of the requests that were sent
    `concurrency` at a time, `alone` of those sent one at a time.
    """

    models: int
    asked_models: int
    total_bytes: int
    requests: int
    concurrency: int
    answered: int
    wrong_model: int
    accuracy: float
    separation: float
    tolerance: float
    rate: float
    crowded: Mapping[str, Latency]
    alone: Mapping[str, Latency]
    served: Served

    def count(self, temperature: str) -> int:
        """Answers that met their model that way."""
        return self.crowded[temperature].count + self.alone[temperature].count

    @property
    def hit_ratio(self) -> float:
        """Share of the answers whose model was resident when asked for."""
        return self.count("hit") / max(1, self.answered)

    def checks(self) -> tuple[Check, ...]:
        """All of them; the demo succeeded if each holds."""
        served = self.served
        ratio = self.total_bytes / max(1, served.capacity)
        said = sum(self.count(name) for name in TEMPERATURES)
        peak = max(served.peak, served.most_seen)
        return (
            Check(
                "every request is answered",
                f"{self.answered:,} of {self.requests:,}",
                self.answered == self.requests > 0,
            ),
            Check(
                f"accuracy is at least {LEAST_ACCURACY:.0%}",
                f"{self.accuracy:.2%}",
                self.accuracy >= LEAST_ACCURACY,
            ),
            Check(
                "no answer comes from another model",
                f"{self.wrong_model:,} did",
                self.wrong_model == 0,
            ),
            Check(
                "any two models answer differently",
                f"by {self.separation:.2g} or more; tolerance {self.tolerance:.0e}",
                self.separation > 2 * self.tolerance,
            ),
            Check(
                f"the models are at least {LEAST_RATIO:.0f} times the budget",
                f"{ratio:.2f} times",
                ratio >= LEAST_RATIO,
            ),
            Check(
                "the budget is never exceeded",
                f"peak {mib(peak)} of {mib(served.capacity)}",
                0 < peak <= served.capacity,
            ),
            Check(
                "models are evicted, and hits and misses occur",
                f"{served.evictions:,} evictions",
                served.evictions > 0
                and self.count("hit") > 0
                and self.count("miss") > 0,
            ),
            Check(
                "the server says of every answer whether it was a hit",
                f"of {said:,}",
                said == self.answered,
            ),
            Check(
                "the server ends cleanly on SIGTERM",
                "it had to be killed"
                if served.exit_code is None
                else f"exit code {served.exit_code}",
                served.exit_code == 0,
            ),
        )

    @property
    def holds(self) -> bool:
        """True if every check does."""
        return all(check.holds for check in self.checks())


def latencies(answers: Answers, verdicts: Verdicts, turns: slice) -> dict[str, Latency]:
    """Of these turns, by temperature: hit, wait (joined somebody's load), miss."""
    found = {}
    for place, name in enumerate(TEMPERATURES):
        chosen = verdicts.answered & (answers.temperature == place)
        found[name] = latency(answers.seconds[turns][chosen[turns]])
    return found


def rate(stream: Stream, answers: Answers, verdicts: Verdicts) -> float:
    """Answers a second while the requests came `concurrency` at a time."""
    turns = slice(None, stream.crowded)
    took = answers.at[turns].max(initial=0.0)
    return float(verdicts.answered[turns].sum() / took) if took else 0.0


def latency(seconds: np.ndarray) -> Latency:
    """Of these durations; zeros where there is none."""
    if len(seconds) == 0:
        return Latency(0, 0.0, 0.0)
    p50, p99 = np.percentile(seconds, (50, 99)) * 1000
    return Latency(len(seconds), float(p50), float(p99))


def show_numbers(summary: Summary, console: Console) -> None:
    """What was measured."""
    table = Table(title="hotset demo", title_justify="left", show_header=False)
    for name, value in _rows(summary):
        table.add_row(name, value)
    console.print(table)


def show_checks(summary: Summary, console: Console) -> None:
    """Every check, and once more those that failed."""
    table = Table(show_header=False, box=None)
    for check in summary.checks():
        mark = "[green]holds[/green]" if check.holds else "[bold red]FAILS[/bold red]"
        table.add_row(mark, check.claim, f"[dim]{check.found}[/dim]")
    console.print(table)
    for check in summary.checks():
        if not check.holds:
            console.print(f"failed: {check.claim} ({check.found})", style="bold red")


def _rows(summary: Summary) -> Iterator[tuple[str, str]]:
    served, crowd = summary.served, f"{summary.concurrency} at a time"
    yield (
        "store",
        f"{summary.models} models, {mib(summary.total_bytes)}; "
        f"{summary.asked_models} of them asked",
    )
    yield "served by", f"{served.device}, policy {served.policy}"
    yield (
        "answers",
        f"{summary.answered:,} of {summary.requests:,}, {summary.rate:,.0f}/s {crowd}",
    )
    yield "accuracy", f"{summary.accuracy:.2%} (against the labels of unseen images)"
    yield "wrong-model answers", f"{summary.wrong_model}"
    yield "hit ratio", f"{summary.hit_ratio:.1%}"
    yield "hot, one at a time", _said(summary.alone["hit"])
    yield "cold, one at a time", _said(summary.alone["miss"])
    yield f"hot, {crowd}", _said(summary.crowded["hit"])
    yield f"cold, {crowd}", _said(summary.crowded["miss"])
    yield "joined a load", _said(summary.crowded["wait"])
    yield "loads, evictions", f"{served.loads:,}, {served.evictions:,}"
    yield "peak bytes", f"{mib(served.peak)} of {mib(served.capacity)}"


def _said(found: Latency) -> str:
    if not found.count:
        return "none"
    return f"p50 {found.p50:.1f} ms, p99 {found.p99:.1f} ms ({found.count:,} answers)"


def mib(nbytes: int) -> str:
    """Bytes as a person reads them."""
    return f"{nbytes / MIB:.2f} MiB"
