"""Many replays of one trace: every policy at every budget, on all cores.

Owns: the table of cells, the worker processes, the clairvoyant rows. Must not: read a
trace (runtime/trace_file.py), print or draw (runtime/simulate_report.py).

Workers are processes of our own; what goes to them and comes back is our own data.
"""

import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass

from eviction.policies import POLICIES
from eviction.policy import Policy
from eviction.simulate.bounds import Clairvoyant, linear_bound, packed_bound
from eviction.simulate.replay import Misses, replay
from eviction.simulate.trace import Trace
from eviction.simulate.waits import Machine, simulate_waits
from loader.quota import cores

BOUNDS = {"packed": packed_bound, "lp": linear_bound}
CLAIRVOYANT = ("belady", "belady-cost", *BOUNDS)
"""Rows that know the future; feasible but for the last, which nothing can beat."""

LP_REQUESTS = 100_000
"""Beyond this the linear program takes minutes: only when it is asked for."""


@dataclass(frozen=True, slots=True)
class Wait:
    """How long requests waited, hits included, when loads took their time."""

    mean_s: float
    p50_s: float
    p99_s: float


@dataclass(frozen=True, slots=True)
class Cell:
    """One policy at one budget. `misses` is None for a bound, which counts seconds;
    `wait` where it was asked for."""

    policy: str
    share: float
    budget: int
    missed_cost: float
    misses: Misses | None
    took_s: float
    wait: Wait | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker is asked. `speed` of the trace's clock: waits are wanted too."""

    policy: str
    share: float
    budget: int
    speed: float | None = None


def budget_of(trace: Trace, share: float) -> int:
    """That share of all bytes, and never so little that a model does not fit."""
    return max(int(share * trace.total_bytes), max(trace.nbytes, default=0))


def jobs_of(
    trace: Trace,
    shares: Sequence[float],
    policies: Sequence[str],
    speed: float | None = None,
) -> list[Job]:
    """The dearest first, so that no core waits for a late long one."""
    jobs = [
        Job(policy, share, budget_of(trace, share), speed)
        for policy in policies
        for share in shares
    ]
    dear = ("lp", "tournament", "blend", "packed")
    return sorted(
        jobs, key=lambda j: dear.index(j.policy) if j.policy in dear else len(dear)
    )


def run(
    trace: Trace,
    jobs: Sequence[Job],
    workers: int | None = None,
    done: Callable[[Cell], None] | None = None,
) -> list[Cell]:
    """The cells in the order of `jobs`; `done` is told of each as it comes."""
    workers = min(workers or cores(), len(jobs))
    if workers <= 1:
        cells = []
        for job in jobs:
            cells.append(_cell(trace, job))
            if done is not None:
                done(cells[-1])
        return cells
    with ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_adopt,
        initargs=(trace,),
    ) as pool:
        pending = {pool.submit(_work, job): job for job in jobs}
        came = {}
        for future in as_completed(pending):
            cell = came[pending[future]] = future.result()
            if done is not None:
                done(cell)
    return [came[job] for job in jobs]


def policy_named(name: str, trace: Trace) -> Policy:
    """A fresh one. The clairvoyant need the trace."""
    if name == "belady":
        return Clairvoyant(trace, weighed=False)
    if name == "belady-cost":
        return Clairvoyant(trace)
    return POLICIES[name]()


def _cell(trace: Trace, job: Job) -> Cell:
    began = time.perf_counter()
    misses, wait = None, None
    if job.policy in BOUNDS:
        cost = BOUNDS[job.policy](trace, job.budget)
    else:
        misses = replay(trace, policy_named(job.policy, trace), job.budget)
        cost = misses.missed_cost
        wait = None if job.speed is None else _wait(trace, job, job.speed)
    took = time.perf_counter() - began
    return Cell(job.policy, job.share, job.budget, cost, misses, took, wait)


def _wait(trace: Trace, job: Job, speed: float) -> Wait:
    machine = Machine(job.budget, speed=speed)
    waits = simulate_waits(trace, policy_named(job.policy, trace), machine)
    return Wait(waits.mean, waits.quantile(0.50), waits.quantile(0.99))


_adopted: list[Trace] = []
"""The one trace of a worker process, sent once and not with every job."""


def _adopt(trace: Trace) -> None:
    _adopted[:] = [trace]


def _work(job: Job) -> Cell:
    return _cell(_adopted[0], job)
