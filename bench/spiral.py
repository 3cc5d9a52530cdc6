"""Spiral: more models in demand than fit, with and without anti-thrash.

Twelve models, room for four, a client each that asks, works for 50 ms and asks again;
a load takes a second. The cache and the policies are the server's own; loader and clock
are not: ten minutes of virtual time take seconds, and every run is the same.

Loads and answers in ten minutes, and the longest that any model went unserved.
"""

import argparse
import asyncio
import random
from dataclasses import dataclass, field
from itertools import pairwise

from bench.result import Figure, finish, parser
from eviction.ledger import Ledger
from eviction.policies import DEFAULT, POLICIES
from loader.manifest import FileRef, ModelSpec
from runtime.bounds import Bounds
from runtime.cache import ModelCache
from runtime.errors import NoRoom
from runtime.observer import NullObserver

MODELS, FIT = 12, 4
LOAD_S, WORK_S = 1.0, 0.05


class VirtualTime(asyncio.BaseEventLoop):
    """A loop whose clock jumps to the next timer; no sockets, no threads."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self._selector = self  # what the base class asks to wait
        self._clock_resolution = 1e-9

    def time(self) -> float:
        """Since the loop was made."""
        return self.now

    def select(self, timeout: float | None) -> list[object]:
        """Waiting is jumping."""
        self.now += timeout or 0.0
        return []

    def _process_events(self, events: list[object]) -> None:
        """There are none."""

    def _write_to_self(self) -> None:
        """Nobody else could wake it."""


@dataclass(frozen=True, slots=True)
class Weightless:
    """A model of one byte."""

    nbytes: int = 1
    phases: dict[str, float] = field(default_factory=dict)


class SlowLoader:
    """Nothing but the wait."""

    def size(self, spec: ModelSpec) -> int:
        """See runtime.residency.Loading."""
        return 1

    async def load(self, spec: ModelSpec) -> Weightless:
        """See runtime.residency.Loading."""
        await asyncio.sleep(LOAD_S)
        return Weightless()

    async def unload(self, model: Weightless) -> None:
        """See runtime.residency.Loading."""


@dataclass(slots=True)
class Outcome:
    """What came of one crowd."""

    loads: int
    answers: int
    longest_s: float


async def crowd(policy: str, on: bool, seconds: float) -> Outcome:
    """All clients until the time is over."""
    loop, chance = asyncio.get_running_loop(), random.Random(0)
    bounds = Bounds(anti_thrash=on)
    cache: ModelCache[Weightless] = ModelCache(
        SlowLoader(), POLICIES[policy](), Ledger(FIT), NullObserver(), bounds
    )
    served: list[list[float]] = [[0.0] for _ in range(MODELS)]

    async def client(index: int) -> None:
        one = FileRef("f", 1, f"{index:064x}")
        spec = ModelSpec(f"m{index}", "1", one, one, (), (), 0)
        while loop.time() < seconds:
            try:
                async with cache.lease(spec):
                    await asyncio.sleep(WORK_S)
                served[index].append(loop.time())
            except NoRoom as error:
                await asyncio.sleep(
                    (error.retry_after or 0.0) * chance.uniform(1.0, 1.2)
                )
            await asyncio.sleep(WORK_S + 0.02 * index)

    await asyncio.gather(*(client(index) for index in range(MODELS)))
    loads = cache.arrivals.loads
    await cache.aclose()
    gaps = [b - a for times in served for a, b in pairwise([*times, seconds])]
    return Outcome(loads, sum(map(len, served)) - MODELS, max(gaps))


def measure(policies: list[str], seconds: float) -> dict[tuple[str, str], Outcome]:
    """By policy, `with` and `without`."""
    found = {}
    for policy in policies:
        for name, on in (("with", True), ("without", False)):
            loop = VirtualTime()
            found[policy, name] = loop.run_until_complete(crowd(policy, on, seconds))
            loop.close()
    return found


def figures(found: dict[tuple[str, str], Outcome]) -> dict[str, Figure]:
    """Each outcome, and what anti-thrash makes of it."""
    told: dict[str, Figure] = {}
    for (policy, name), one in found.items():
        told[f"loads_{name}_{policy}"] = Figure(one.loads)
        told[f"answers_{name}_{policy}"] = Figure(one.answers)
        told[f"longest_unserved_s_{name}_{policy}"] = Figure(one.longest_s, "s")
    for policy in dict.fromkeys(policy for policy, _ in found):
        with_it, without = found[policy, "with"], found[policy, "without"]
        told[f"loads_ratio_{policy}"] = Figure(with_it.loads / without.loads, goal=0.5)
        told[f"answers_ratio_{policy}"] = Figure(
            with_it.answers / without.answers, goal=1.5, better="higher"
        )
    return told


def read_options() -> argparse.Namespace:
    """The command line."""
    command = parser(__doc__)
    command.add_argument(
        "--policies", default=f"lru,{DEFAULT}", metavar="NAMES",
        help=f"Default: lru,{DEFAULT}",
    )  # fmt: skip
    options = command.parse_args()
    options.policies = options.policies.split(",")
    if set(options.policies) - set(POLICIES):
        command.error(f"--policies: some of {', '.join(POLICIES)}")
    return options


def main() -> None:
    """The command."""
    options = read_options()
    seconds = 120.0 if options.quick else 600.0
    finish("spiral", options, figures(measure(options.policies, seconds)), {})


if __name__ == "__main__":
    main()
