"""What bench.soak makes of a course: slopes, floors, windows, figures.

Owns: the arithmetic and the goals. Must not: measure or draw.
"""

from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise

from bench.client import quantile
from bench.result import Figure, rounded
from bench.soak_course import Course, Look, Seen

LONG_S = 1200.0
"""A shorter run has no slope to judge: it has hardly warmed up."""
WINDOW_S = 300.0
GROWTH_MIB, GROWTH_SHARE = 10.0, 0.02
"""An hour may add so much, or such a share of what there is, whichever is more."""


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Of the line through (x, y) with the least squares of errors."""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    spread = sum((x - mean_x) ** 2 for x in xs)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread


def thirds(looks: Sequence[Look], seconds: float) -> list[list[Look]]:
    """Warming up, then, now."""
    edges = [0.0, seconds / 3, 2 * seconds / 3, float("inf")]
    return [[x for x in looks if a <= x.at < b] for a, b in pairwise(edges)]


def windows(seen: Sequence[Seen], seconds: float) -> list[list[float]]:
    """Latencies of hits by the window in which they were sent: of five minutes or a
    little more, so that they are equal. A short run has four."""
    count = max(4, int(seconds / WINDOW_S))
    found: list[list[float]] = [[] for _ in range(count)]
    for each in seen:
        if each.met == "hit":
            number = min(int(each.at / seconds * count), count - 1)
            found[number].append(each.seconds)
    return found


def figures_of(course: Course, seconds: float) -> dict[str, Figure]:
    """What is promised of one front end, and what was seen."""
    _, then, now = thirds(course.looks, seconds)
    later = [*then, *now]
    own = quantile([x.own for x in now], 0.5)
    most = max(GROWTH_MIB, GROWTH_SHARE * own)
    goal = most if seconds >= LONG_S else None
    ended = {
        outcome: Figure(_count(course, outcome), "requests", goal=0)
        for outcome in ("wrong", "lost", "strange")
    }
    found = {
        "requests": Figure(course.counts.total(), "requests"),
        **ended,
        "loads": Figure(course.loads, "loads"),
        "evictions": Figure(course.evictions, "models"),
        "memory": Figure(own, "MiB, own"),
        "memory_slope": Figure(
            slope([(x.at / 3600, x.own) for x in later]), "MiB/h", goal
        ),
        "pss_slope": Figure(slope([(x.at / 3600, x.pss) for x in later]), "MiB/h"),
        # The least of a third: who is connected for a moment does not count.
        "descriptors_grown": Figure(
            min(x.descriptors for x in now) - min(x.descriptors for x in then), "", 0
        ),
        "threads_grown": Figure(
            min(x.threads for x in now) - min(x.threads for x in then)
        ),
        "errors_logged": Figure(course.complaints.total(), "lines", goal=0),
        "exit_code": Figure(course.exit_code, "", goal=0),
    }
    told = hit_windows(course, seconds)
    for name in ("p50", "p99"):
        for which, window in (("first", told[:1]), ("last", told[-1:])):
            value = window[0][f"{name}_ms"] if window else float("inf")
            found[f"hit_{name}_{which}"] = Figure(value, "ms")
    return {f"{course.name}_{key}": figure for key, figure in found.items()}


def hit_windows(course: Course, seconds: float) -> list[dict[str, float]]:
    """p50 and p99 of each window, in milliseconds, and the minute at which it ends."""
    found = windows(course.seen, seconds)
    return [
        {
            "until_minute": rounded((number + 1) * seconds / len(found) / 60),
            "hits": len(window),
            "p50_ms": rounded(quantile(window, 0.5) * 1e3),
            "p99_ms": rounded(quantile(window, 0.99) * 1e3),
        }
        for number, window in enumerate(found)
        if window
    ]


def details_of(course: Course, seconds: float) -> dict[str, object]:
    """All that is worth keeping, without every single request."""
    kinds: dict[str, dict[str, int]] = {}
    for (kind, outcome), count in sorted(course.counts.items()):
        kinds.setdefault(kind, {})[outcome] = count
    met = [each.met for each in course.seen]
    return {
        "outcomes": kinds,
        "said_instead": dict(course.codes.most_common(50)),
        "errors_logged": dict(course.complaints.most_common(50)),
        "met": {name: met.count(name) for name in ("hit", "wait", "miss")},
        "hit_windows": hit_windows(course, seconds),
        "looks": [
            {key: rounded(value) for key, value in asdict(each).items()}
            for each in course.looks
        ],
    }


def _count(course: Course, outcome: str) -> int:
    return sum(n for (_, ended), n in course.counts.items() if ended == outcome)
