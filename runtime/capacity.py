"""How much memory buys how much latency: waits and loading over a ladder of budgets.

Owns: the ladder, its points, and the sentences about them. Must not: read or print.

Each point is a simulation of its own (eviction/simulate/waits.py): what a cache of one
size holds tells nothing exact about a larger one. LRU is the exception, and its loads
come for all sizes from one pass (eviction/simulate/stack.py). Sampling the models
(C. Waldspurger et al., "Cache Modeling and Optimization using Miniature Simulations",
ATC 2017) would make every policy cheap, but needs tens of thousands of models: a fleet
of some hundred has a few that decide.
"""

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import pairwise

from eviction.simulate.stack import lru_curve
from eviction.simulate.trace import Trace
from eviction.simulate.waits import Machine, simulate_waits
from loader.quota import cores
from runtime.simulate import policy_named

GIB = 2**30
STEPS = 12
SMALLEST = 0.02
"""Share of all models on the lowest rung; a budget below the largest model is none."""


@dataclass(frozen=True, slots=True)
class Point:
    """One budget. Waits are over all requests, hits included."""

    budget: int
    loads: int
    loading_s: float
    mean_s: float
    p50_s: float
    p99_s: float


@dataclass(frozen=True, slots=True)
class Advice:
    """What the points say. `chosen` is None when no budget meets the target."""

    target_s: float
    chosen: Point | None
    saved_per_gib_hour: float
    sentence: str


def ladder(trace: Trace, steps: int = STEPS) -> list[int]:
    """Budgets in even ratios, from the smallest that serves everyone to all models."""
    low = max(int(SMALLEST * trace.total_bytes), max(trace.nbytes))
    ratio = (trace.total_bytes / low) ** (1.0 / max(steps - 1, 1))
    rungs = {min(int(low * ratio**i), trace.total_bytes) for i in range(steps - 1)}
    return sorted(rungs | {trace.total_bytes})


def lru_ladder(trace: Trace, budgets: Sequence[int]) -> list[float]:
    """Seconds LRU would load at each budget, loads taking no time: one pass for all."""
    curve = lru_curve(trace)
    return [curve.missed_cost(budget) for budget in budgets]


def survey(
    trace: Trace,
    policy: str,
    budgets: Sequence[int],
    speed: float = 1.0,
    workers: int | None = None,
    done: Callable[[Point], None] | None = None,
) -> list[Point]:
    """A point a budget, in their order."""
    workers = min(workers or cores(), len(budgets))
    came: dict[int, Point] = {}
    with ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_adopt,
        initargs=(trace, policy, speed),
    ) as pool:
        pending = {pool.submit(_work, budget): budget for budget in budgets}
        for future in as_completed(pending):
            point = came[pending[future]] = future.result()
            if done is not None:
                done(point)
    return [came[budget] for budget in budgets]


def point_at(trace: Trace, policy: str, budget: int, speed: float) -> Point:
    """One simulation."""
    machine = Machine(budget, speed=speed)
    waits = simulate_waits(trace, policy_named(policy, trace), machine)
    return Point(
        budget,
        waits.loads,
        waits.loading_s,
        waits.mean,
        waits.quantile(0.50),
        waits.quantile(0.99),
    )


def worth_of_a_gib(points: Sequence[Point], hours: float) -> list[float]:
    """Seconds of loading an hour that one more GiB saves at each point; 0 at the last.

    Towards the next point, and never below 0: loads of a larger cache may come in an
    order that costs a little more.
    """
    slopes = [
        max(0.0, (a.loading_s - b.loading_s) / ((b.budget - a.budget) / GIB) / hours)
        for a, b in pairwise(points)
    ]
    return [*slopes, 0.0]


def advise(points: Sequence[Point], target_s: float, hours: float) -> Advice:
    """The smallest budget that meets the target, in one sentence."""
    worth = worth_of_a_gib(points, hours)
    for point, gib in zip(points, worth, strict=True):
        if point.p99_s <= target_s:
            return Advice(
                target_s,
                point,
                gib,
                f"{point.budget / GIB:.2f} GiB buy a p99 wait of {point.p99_s:.2f} s"
                f" (target {target_s:g} s) and a mean of {point.mean_s * 1e3:.1f} ms;"
                f" one more GiB is worth {gib:.1f} s of loading an hour.",
            )
    last = points[-1]
    return Advice(
        target_s,
        None,
        0.0,
        f"No budget buys a p99 wait of {target_s:g} s: with all models resident"
        f" ({last.budget / GIB:.2f} GiB) it is {last.p99_s:.2f} s, from first loads"
        " alone.",
    )


_adopted: list[tuple[Trace, str, float]] = []
"""What a worker process works on, sent once."""


def _adopt(trace: Trace, policy: str, speed: float) -> None:
    _adopted[:] = [(trace, policy, speed)]


def _work(budget: int) -> Point:
    trace, policy, speed = _adopted[0]
    return point_at(trace, policy, budget, speed)
