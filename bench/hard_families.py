"""Traffic that is unkind to one policy or another: where does the default lose?

Owns: traces nobody chose a parameter on before they were first run. Must not: run a
policy. Sizes and reload times as in bench/families.py unless the name says otherwise.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from bench.families import drawn, zipf
from eviction.simulate.trace import Trace

Ids = NDArray[np.int64]
REQUESTS = 60_000


class Popularity:
    """Draws from a Zipf law over `n` models in an order of their own."""

    def __init__(self, rng: np.random.Generator, n: int, exponent: float) -> None:
        weights = 1.0 / np.arange(1, n + 1) ** exponent
        self._rng = rng
        self._cumulated = np.cumsum(weights / weights.sum())
        self.order = rng.permutation(n)

    def draw(self, count: int) -> Ids:
        """So many requests."""
        at = np.searchsorted(self._cumulated, self._rng.random(count))
        return self.order[np.minimum(at, len(self.order) - 1)]


def in_order(name: str, ids: Ids, n: int, seed: int) -> Trace:
    """Twenty requests a second."""
    return drawn(name, np.arange(len(ids)) / 20.0, ids, n, seed)


def scan(seed: int, n: int = 600) -> Trace:
    """Zipf; every 5,000 requests somebody asks for every model once."""
    popular = Popularity(np.random.default_rng([seed, 11]), n, 0.9)
    rounds = [(popular.draw(4400), np.arange(n)) for _ in range(REQUESTS // 5000)]
    return in_order(
        "scan", np.concatenate([x for pair in rounds for x in pair]), n, seed
    )


def loop(seed: int, n: int = 300) -> Trace:
    """One after the other, round and round: the worst there is for LRU."""
    rng = np.random.default_rng([seed, 12])
    popular = Popularity(rng, n, 0.8)
    ids = np.where(
        rng.random(REQUESTS) < 0.1, popular.draw(REQUESTS), np.arange(REQUESTS) % n
    )
    return in_order("loop", ids, n, seed)


def phases(seed: int, n: int = 500) -> Trace:
    """Every 8,000 requests all popularity is dealt anew."""
    rng = np.random.default_rng([seed, 13])
    parts = [Popularity(rng, n, 0.9).draw(8000) for _ in range(8)]
    return in_order("phases", np.concatenate(parts), n, seed)


def periodic(seed: int, n: int = 400) -> Trace:
    """Clockwork: each model every two minutes to two hours, nearly on time."""
    rng = np.random.default_rng([seed, 14])
    times, ids = [], []
    for m in range(n):
        period = math.exp(rng.uniform(math.log(120), math.log(7200)))
        at = period * (rng.random() + np.arange(int(2 * 86_400 / period)))
        times.append(np.maximum(at + rng.normal(0.0, 0.02 * period, len(at)), 0.0))
        ids.append(np.full(len(at), m))
    return drawn("periodic", np.concatenate(times), np.concatenate(ids), n, seed)


def flash(seed: int, n: int = 600) -> Trace:
    """Again and again one cold model has half of the traffic for a while."""
    rng = np.random.default_rng([seed, 15])
    ids = Popularity(rng, n, 0.8).draw(REQUESTS)
    for at in range(1000, REQUESTS - 1500, 1500):
        crowd = ids[at : at + int(rng.integers(200, 800))]
        crowd[rng.random(len(crowd)) < 0.5] = rng.integers(n)
    return in_order("flash", ids, n, seed)


def once(seed: int, n: int = 500) -> Trace:
    """A fifth of the requests are for models nobody asks for again."""
    rng = np.random.default_rng([seed, 16])
    ids = Popularity(rng, n, 0.9).draw(50_000)
    strangers = rng.random(len(ids)) < 0.2
    ids[strangers] = n + np.arange(strangers.sum())
    return in_order("once", ids, n + int(strangers.sum()), seed)


def sessions(seed: int, n: int = 600) -> Trace:
    """Six models that belong together are asked together, once or twice over."""
    rng = np.random.default_rng([seed, 19])
    groups = rng.permutation(n).reshape(-1, 6)
    parts: list[Ids] = []
    for group in Popularity(rng, len(groups), 0.9).draw(REQUESTS // 4):
        asked = groups[group][rng.random(6) < 0.8]
        parts += [asked] * int(rng.integers(1, 3))
    return in_order("sessions", np.concatenate(parts)[:REQUESTS], n, seed)


def births(seed: int, n: int = 1200) -> Trace:
    """Models are born, asked for less and less, and forgotten; few are there always."""
    rng = np.random.default_rng([seed, 20])
    share = rng.permutation(1.0 / np.arange(1, n + 1) ** 1.2)
    counts = np.maximum(1, share / share.sum() * REQUESTS).astype(int)
    times, ids = [], []
    for m in range(n):
        born = rng.random() * REQUESTS * 0.9 if m > n // 20 else 0.0
        life = math.exp(rng.normal(math.log(REQUESTS * 0.1), 1.5))
        at = np.minimum(born + rng.exponential(life, counts[m]), REQUESTS)
        times.append(at)
        ids.append(np.full(len(at), m))
    return drawn("births", np.concatenate(times), np.concatenate(ids), n, seed)


def stack(seed: int, n: int = 500) -> Trace:
    """The next one is near the top of the pile of those used last."""
    rng = np.random.default_rng([seed, 17])
    pile, ids = list(range(n)), []
    for depth in np.minimum((rng.pareto(0.6, REQUESTS) * 3).astype(int), n - 1):
        pile.insert(0, pile.pop(int(depth)))
        ids.append(pile[0])
    return in_order("stack", np.asarray(ids), n, seed)


def alike(trace: Trace, name: str) -> Trace:
    """Every model of one size and cost: only recency and frequency are left."""
    n = len(trace.names)
    return replace(trace, name=name, nbytes=[100_000_000] * n, reload_s=[1.0] * n)


def by_popularity(seed: int, name: str, largest_first: bool) -> Trace:
    """The popular are the large, or the small; cost is a start and a bandwidth."""
    trace = zipf(seed, 600, REQUESTS, drift=0.01)
    asked = np.bincount(trace.ids, minlength=len(trace.names))
    rng = np.random.default_rng([seed, 21])
    rank = np.argsort(np.argsort(-asked) + rng.normal(0, 90.0, len(asked)))
    sizes = np.sort(np.asarray(trace.nbytes))
    nbytes = np.empty_like(sizes)
    nbytes[rank] = sizes[::-1] if largest_first else sizes
    return with_cost(replace(trace, name=name, nbytes=nbytes.tolist()), 0.25, 2e9)


def with_cost(trace: Trace, start_s: float, rate: float) -> Trace:
    """Reload times that depend on the size alone."""
    return replace(trace, reload_s=[start_s + x / rate for x in trace.nbytes])


HARD: Mapping[str, Callable[[int], Trace]] = {
    "scan": scan,
    "loop": loop,
    "phases": phases,
    "periodic": periodic,
    "flash": flash,
    "once": once,
    "sessions": sessions,
    "births": births,
    "stack": stack,
    "stack-alike": lambda seed: alike(stack(seed), "stack-alike"),
    "zipf-alike": lambda seed: alike(
        zipf(seed, 500, REQUESTS, drift=0.05, every=1000), "zipf-alike"
    ),
    "large-first": lambda seed: by_popularity(seed, "large-first", True),
    "small-first": lambda seed: by_popularity(seed, "small-first", False),
    "bandwidth": lambda seed: with_cost(
        zipf(seed, 800, REQUESTS, drift=0.02, name="bandwidth"), 0.01, 1e9
    ),
    "constant": lambda seed: with_cost(
        zipf(seed, 800, REQUESTS, drift=0.02, name="constant"), 1.0, math.inf
    ),
    "dozen": lambda seed: zipf(seed, 12, 20_000, 0.6, drift=0.5, name="dozen"),
    "short": lambda seed: zipf(seed, 800, 8000, 1.1, name="short"),
}
