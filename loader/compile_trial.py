"""Does the compiled code give what the graph gives, and is it faster?

Owns: the sizes and values that are tried, and the comparison. Must not: compile.
"""

import itertools
import math
import time
from collections.abc import Sequence

import torch

from loader.alike import alike
from loader.compile_job import JobInput
from loader.compiled import Compiled, Terms
from loader.generated import Forward

MOST_ELEMENTS = 1 << 14
"""Of an input in a trial: the largest size allowed is tried if all is not larger."""

USUAL = (2, 3, 7, 16)
FASTER = 1.05
"""Less is within the noise, and not worth code that could go wrong."""
TOGETHER, ENOUGH_S = 4, 0.03
"""Calls timed together, and CPU seconds spent on one size (once, if it takes more)."""
SEED = 23

Sizes = dict[str, int]


class Disagrees(Exception):
    """The compiled code is wrong, or no faster; says where."""


def trial_sizes(terms: Terms) -> list[Sizes]:
    """Free sizes to try: all least, one least, usual ones, each at its most."""
    low = {name: bounds[0] for name, bounds in terms.ranges.items()}
    usual = [
        {name: min(max(size + at, low[name]), most)
         for at, (name, (_, most)) in enumerate(terms.ranges.items())}
        for size in USUAL
    ]  # fmt: skip
    edges = [{**usual[1], name: low[name]} for name in low]
    edges += [{**usual[0], name: _most(terms, usual[0], name)} for name in low]
    found: list[Sizes] = []
    for sizes in (low, *usual, *edges):
        if sizes not in found:
            found.append(sizes)
    return found if terms.ranges else [{}] * 4


def _most(terms: Terms, beside: Sizes, name: str) -> int:
    """The most that this size may be without a trial that takes for ever."""
    others = 1
    for term in terms.inputs:
        dims = [d if isinstance(d, int) else beside[d] for d in term.dims if d != name]
        others = max(others, math.prod(dims))
    return min(terms.ranges[name][1], max(MOST_ELEMENTS // others, 2))


def drawn(
    terms: Terms, inputs: Sequence[JobInput], sizes: Sizes, draw: torch.Generator
) -> tuple[torch.Tensor, ...]:
    """Inputs of these sizes, with values that a request may have."""
    found = []
    for term, item in zip(terms.inputs, inputs, strict=True):
        shape = [sizes[dim] if isinstance(dim, str) else dim for dim in term.dims]
        found.append(values(item, shape, draw))
    return tuple(found)


def values(item: JobInput, shape: Sequence[int], draw: torch.Generator) -> torch.Tensor:
    """One input."""
    if item.dtype.is_floating_point:
        return torch.randn(shape, generator=draw).to(item.dtype)
    low, high = (0, 1) if item.dtype is torch.bool else (item.low, item.high)
    span = min(high, low + 2**31) + 1
    return torch.randint(low, span, list(shape), generator=draw).to(item.dtype)


def prove(
    compiled: Compiled,
    eager: Forward,
    weights: Sequence[torch.Tensor],
    inputs: Sequence[JobInput],
    terms: Terms,
) -> float:
    """How many times faster it is, over all sizes. Raises Disagrees."""
    draw, ratios = torch.Generator().manual_seed(SEED), []
    with torch.inference_mode():
        for sizes in trial_sizes(terms):
            tensors = (*weights, *drawn(terms, inputs, sizes, draw))
            try:
                theirs = eager(*tensors)
            except Exception:  # noqa: BLE001 - values that the graph itself refuses
                continue
            # Twice: a short call takes another way from the second time on.
            for _ in range(2):
                _compare(compiled(*tensors), theirs, sizes)
            _check_used(compiled)
            ratios.append(_ratio(eager, compiled, tensors))
    if not ratios:
        raise Disagrees("no input could be made up that the graph itself takes")
    speedup = math.exp(sum(map(math.log, ratios)) / len(ratios))
    if speedup < FASTER:
        raise Disagrees(f"compiled it is not faster ({speedup:.2f}x)")
    return speedup


def _check_used(compiled: Compiled) -> None:
    if compiled.failure or compiled.declined:
        raise Disagrees(f"the compiled code {compiled.failure or 'was not used'}")


def _compare(
    ours: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor], sizes: Sizes
) -> None:
    said = ", ".join(map(str, sizes.values()))
    for mine, wanted in itertools.zip_longest(ours, theirs):
        if mine is None or wanted is None or mine.shape != wanted.shape:
            raise Disagrees(f"an output has another shape at sizes {said}")
        if mine.dtype != wanted.dtype:
            raise Disagrees(f"an output has another dtype at sizes {said}")
        if not alike(mine, wanted):
            raise Disagrees(f"an output differs at sizes {said}")


def _ratio(
    eager: Forward, compiled: Forward, tensors: tuple[torch.Tensor, ...]
) -> float:
    """Eager's time by the compiled's: best of some, in turns. CPU time of this thread:
    at our priority a busy machine has us wait between any two instructions."""
    best, spent = [math.inf, math.inf], 0.0
    while spent < ENOUGH_S:
        for at, run in enumerate((eager, compiled)):
            began = time.thread_time()
            for _ in range(TOGETHER):
                run(*tensors)
            took = time.thread_time() - began
            best[at] = min(best[at], took)
            spent += took
    return best[0] / best[1]
