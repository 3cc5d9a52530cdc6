"""Traffic and fleets for the policy benchmark: one measured trace, the rest drawn.

Owns: how a trace is drawn, seed by seed. Must not: run a policy. Two are what the goals
are stated on (`servegen`, `zipf-drift`); the others are there so that parameters are
chosen on traffic that the goals are not measured on (docs/decisions/0010-policies.md).

Sizes: log-normal fitted to the fp16 sizes of 1,556 timm models (median 55 MB, sigma
1.26, 1 MB to 2 GB). Reload: initialisation (log-normal, median 0.15 s, sigma 0.8) plus
the tier it comes from: 30 % pinned RAM (10 ms, 12 GB/s), 40 % disk (50 ms, 2 GB/s),
30 % object store (300 ms, 250 MB/s). Size, cost and popularity are independent.

`servegen`: arrivals from alibaba/ServeGen's published per-client rates, Apache-2.0.
"""

import csv
import gzip
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eviction.simulate.trace import Trace

SERVEGEN = (
    Path(__file__).parents[2] / "shared" / "traces" / "servegen_tenant_14d.csv.gz"
)

LATENCY_S = (0.010, 0.050, 0.300)
BANDWIDTH = (12e9, 2e9, 250e6)
DISK, RAM = 1, 0


class Fleet:
    """Sizes, initialisation and tier of `n` models."""

    def __init__(self, n: int, seed: int) -> None:
        rng = np.random.default_rng([seed, n])
        nbytes = np.exp(rng.normal(math.log(55e6), 1.26, n))
        self.nbytes = np.clip(nbytes, 1e6, 2e9).astype(np.int64)
        self.start_s = np.exp(rng.normal(math.log(0.15), 0.8, n))
        self.tier = rng.choice(3, n, p=(0.3, 0.4, 0.3))

    def reload_s(self, tier: int | None = None) -> list[float]:
        """From each one's own tier, or from one tier for all."""
        which = self.tier if tier is None else np.full(len(self.nbytes), tier)
        latency = np.asarray(LATENCY_S)[which]
        seconds = self.start_s + latency + self.nbytes / np.asarray(BANDWIDTH)[which]
        return [float(s) for s in seconds]


def drawn(
    name: str, times: NDArray[np.float64], ids: NDArray[np.int64], n: int, seed: int
) -> Trace:
    order = np.argsort(times, kind="stable")
    fleet = Fleet(n, seed)
    return Trace(
        name,
        times[order].tolist(),
        ids[order].tolist(),
        [f"m{i}" for i in range(n)],
        fleet.nbytes.tolist(),
        fleet.reload_s(),
    )


def servegen(seed: int) -> Trace:
    """Real diurnal and bursty rates of 312 tenants over 14 days; fleets by seed."""
    times: list[float] = []
    ids: list[int] = []
    index: dict[str, int] = {}
    with gzip.open(SERVEGEN, "rt", newline="") as file:
        for row in csv.DictReader(file):
            times.append(float(row["t_seconds"]))
            ids.append(index.setdefault(row["model_id"], len(index)))
    return drawn("servegen", np.asarray(times), np.asarray(ids), len(index), seed)


def zipf(
    seed: int,
    n: int = 1000,
    requests: int = 100_000,
    exponent: float = 0.9,
    drift: float = 0.0,
    every: int = 2000,
    name: str = "zipf",
) -> Trace:
    """Independent draws; a share `drift` of the ranks is reshuffled now and then."""
    rng = np.random.default_rng([seed, n, 1])
    weights = 1.0 / np.arange(1, n + 1) ** exponent
    cumulated = np.cumsum(weights / weights.sum())
    rank = rng.permutation(n)
    parts = []
    for at in range(0, requests, every):
        chance = rng.random(min(every, requests - at))
        parts.append(rank[np.minimum(np.searchsorted(cumulated, chance), n - 1)])
        if moved := int(drift * n):
            who = rng.choice(n, moved, replace=False)
            rank[who] = rank[rng.permutation(who)]
    return drawn(name, np.arange(requests) / 20.0, np.concatenate(parts), n, seed)


def bursty(
    seed: int, n: int = 400, requests: int = 100_000, exponent: float = 0.7
) -> Trace:
    """Each model is on for a minute and off for ten, more or less; Zipf volumes."""
    rng = np.random.default_rng([seed, n, 2])
    weights = 1.0 / np.arange(1, n + 1) ** exponent
    weights *= requests / weights.sum()
    times, ids = [], []
    span = 5000.0
    for m in range(n):
        scale = math.exp(rng.normal(0.0, 1.0))
        edges = (
            np.cumsum(rng.exponential(np.tile([60.0 * scale, 600.0 * scale], 400)))
            - rng.random() * 660.0 * scale
        )
        on, off = edges[1:-1:2], edges[2::2]  # the first stretch ends at edges[0]
        counts = rng.poisson(weights[m] / span * 11.0 * (off - on))
        starts, lengths = np.repeat(on, counts), np.repeat(off - on, counts)
        at = starts + rng.random(len(starts)) * lengths
        at = at[(at >= 0) & (at < span)]
        times.append(at)
        ids.append(np.full(len(at), m))
    return drawn("bursty", np.concatenate(times), np.concatenate(ids), n, seed)


def diurnal(
    seed: int, n: int = 600, requests: int = 100_000, exponent: float = 0.8
) -> Trace:
    """A week of days; each model has its own hour and its own good and bad spells."""
    rng = np.random.default_rng([seed, n, 3])
    bins = 7 * 144
    phase, depth = rng.random(n), rng.random(n)
    day = 2 * np.pi * (np.arange(bins)[None] / 144 + phase[:, None])
    rate = rng.permutation(1.0 / np.arange(1, n + 1) ** exponent)[:, None] * (
        1 + depth[:, None] * np.sin(day)
    )
    rate *= np.exp(rng.normal(0.0, 0.5, (n, bins)))
    counts = rng.poisson(rate * requests / rate.sum())
    model, at = np.nonzero(counts)
    counts = counts[model, at]
    times = np.repeat(at * 600.0, counts) + rng.random(counts.sum()) * 600.0
    return drawn("diurnal", times, np.repeat(model, counts), n, seed)


def passing(seed: int, n: int = 1500, requests: int = 70_000) -> Trace:
    """A steady head, and a crowd of models that come, live for a while and go."""
    rng = np.random.default_rng([seed, n, 4])
    head = n // 10
    weights = 1.0 / np.arange(1, head + 1) ** 1.3
    steady = int(requests * 0.7)
    ids = [rng.choice(head, steady, p=weights / weights.sum())]
    times = [rng.random(steady) * requests]
    volume = rng.pareto(1.1, n - head) + 0.5
    volume = np.maximum(1, volume / volume.sum() * (requests - steady)).astype(int)
    for m in range(head, n):
        life = math.exp(rng.normal(math.log(requests * 0.05), 1.2))
        at = rng.random() * requests + rng.exponential(life, volume[m - head])
        at = np.minimum(at, float(requests))
        times.append(at)
        ids.append(np.full(len(at), m))
    return drawn("passing", np.concatenate(times), np.concatenate(ids), n, seed)


FAMILIES: Mapping[str, Callable[[int], Trace]] = {
    "servegen": servegen,
    "zipf": zipf,
    "zipf-drift": lambda seed: zipf(seed, drift=0.02, name="zipf-drift"),
    "zipf-fast": lambda seed: zipf(
        seed, 300, 60_000, 0.7, drift=0.1, every=1000, name="zipf-fast"
    ),
    "zipf-steep": lambda seed: zipf(
        seed, 1500, 70_000, 1.2, drift=0.01, name="zipf-steep"
    ),
    "bursty": bursty,
    "diurnal": diurnal,
    "passing": passing,
}
