"""The policies against LRU, the clairvoyant and the goals: python -m bench.policies

Owns: the goals of the eviction work and how each is measured. Must not: choose
parameters; those are in the policies' own files (docs/decisions/0010-policies.md).

A full run takes about 12 minutes on 2 cores; --quick is a small part of the
same in less than 50 seconds, whose goals hold by less and are marked as quick.
--hard runs the traffic of bench/hard_families.py in the place of the usual (7 minutes):
nothing but the question where the default loses, and by how much.
"""

import argparse
import json
import os
import sys
import time
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

from rich.progress import Progress

from bench.families import FAMILIES, SERVEGEN
from bench.hard_families import HARD
from bench.policy_goals import (
    Scope,
    judge_gap,
    judge_ratios,
    judge_speed,
    judge_waits,
)
from bench.policy_report import DEFAULT, OURS, Report, as_row, draw, machine_facts
from eviction.simulate.trace import Trace
from runtime.simulate import Cell, Job, budget_of, run

RESULTS = Path(__file__).parent / "results"
SHARES = (0.05, 0.10, 0.20, 0.40)
QUICK_REQUESTS = 30_000


def matrix(scope: Scope, report: Report, progress: Progress) -> None:
    """Every policy, family, share and seed."""
    policies = (DEFAULT, *sorted(set(OURS) - {DEFAULT}), "belady-cost")
    runs = [(f, seed) for f in scope.families for seed in scope.seeds_of(f)]
    total = len(runs) * len(scope.shares) * len(policies)
    bar = progress.add_task("replays", total=total)
    for family, seed in runs:
        trace = {**FAMILIES, **HARD}[family](seed)
        if scope.requests is not None:
            trace = trace.head(scope.requests)
        jobs = [
            Job(policy, share, budget_of(trace, share))
            for policy in policies
            for share in scope.shares
        ]
        progress.update(bar, description=f"{family} seed {seed}")
        began = time.perf_counter()
        cells = run(trace, jobs, scope.workers, lambda _: progress.advance(bar))
        took = time.perf_counter() - began
        if (family, seed, scope.requests) == ("servegen", 0, None):
            # Asked for: six policies at four sizes; here all of ours and one more.
            report.at_most("simulator_s.servegen", took, 300.0)
        for cell in cells:
            report.cells.append(as_row(family, seed, trace, cell))
        for share in scope.shares:
            cost = plain_lru(trace, budget_of(trace, share))
            report.cells.append(
                as_row(family, seed, trace, Cell("lru-plain", share, 0, cost, None, 0))
            )


def plain_lru(trace: Trace, budget: int) -> float:
    """Seconds of loading of the LRU everybody has: no victim is spared."""
    held: OrderedDict[int, int] = OrderedDict()
    free, cost = budget, 0.0
    for m in trace.ids:
        if m in held:
            held.move_to_end(m)
            continue
        cost += trace.reload_s[m]
        while trace.nbytes[m] > free:
            free += held.popitem(last=False)[1]
        held[m] = trace.nbytes[m]
        free -= trace.nbytes[m]
    return cost


def options_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.policies",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="a small part, <= 50 s")
    parser.add_argument(
        "--hard", action="store_true", help="traffic that is unkind to some policy"
    )
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count(), help="processes (all cores)"
    )
    parser.add_argument(
        "--out", type=Path, default=RESULTS, help="where JSON and PNG go"
    )
    return parser.parse_args(arguments)


def measure(scope: Scope, quick: bool) -> Report:
    """All of it, under one progress bar."""
    report = Report()
    with Progress(disable=not sys.stderr.isatty()) as progress:
        matrix(scope, report, progress)
        judge_ratios(scope, report)
        if "servegen" in scope.families:
            judge_waits(scope, report, progress)
            if not quick:
                judge_gap(report, progress)
    if "servegen" in scope.families:
        judge_speed(report, quick)
    return report


def scope_of(options: argparse.Namespace) -> Scope:
    """What is run."""
    if options.hard:
        if options.quick:
            return Scope(tuple(HARD)[::6], (0,), SHARES[1:3], None, options.workers)
        return Scope(tuple(HARD), (0,), SHARES, None, options.workers)
    families = tuple(f for f in FAMILIES if f != "servegen" or SERVEGEN.exists())
    if len(families) < len(FAMILIES):
        print("shared/traces is absent: ServeGen and its goals are left out")
    if not options.quick:
        return Scope(families, (0, 1, 2), SHARES, None, options.workers)
    two = tuple(f for f in ("servegen", "zipf-drift") if f in families)
    return Scope(two, (0,), (0.10, 0.20), QUICK_REQUESTS, options.workers)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, write, and end with one line a machine can read."""
    options = options_of(arguments)
    scope = scope_of(options)
    began = time.perf_counter()
    report = measure(scope, options.quick)
    took = time.perf_counter() - began
    figures = {
        name: {"value": f.value, "goal": f.goal, "holds": f.holds}
        for name, f in report.figures.items()
    }
    if not options.quick:
        options.out.mkdir(parents=True, exist_ok=True)
        whole = {
            **machine_facts(),
            "took_s": round(took, 1),
            "figures": figures,
            "waits": report.waits,
            "cells": report.cells,
        }
        text = json.dumps(whole, indent=1) + "\n"
        stem = "policies-hard" if options.hard else "policies"
        (options.out / f"{stem}.json").write_text(text)
        draw(report, scope.families, scope.shares, options.out / f"{stem}.png")
    print(f"{'quick' if options.quick else 'full'} run, {took:.0f} s")
    print("RESULT " + json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
