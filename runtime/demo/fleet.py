"""Who is in the fleet: names, seeds, and each model's own order of the classes.

Owns: the recipe from which a fleet follows, down to every permutation. Must not: train,
touch a file or know a server.

Output j of a model is its score for digit `order[j]`. No two models share an order, so
the scores of one model read by another's order are wrong: an answer proves its weights.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from runtime.demo.nets import ARCHITECTURES, CLASSES, Architecture

MANY_SEEDS = 1_000_000
"""Models of different fleets get different seeds up to so many models a fleet."""

SHARES = {"mlp": 44, "cnn": 34, "former": 22}
"""Out of a hundred models: the dearer to train, the fewer."""


@dataclass(frozen=True, slots=True)
class Member:
    """One model of the fleet, before it is trained."""

    name: str
    architecture: Architecture
    seed: int
    order: tuple[int, ...]


def muster(seed: int, models: int) -> tuple[Member, ...]:
    """The fleet of `models` members that follows from `seed`; always the same one."""
    seen: set[tuple[int, ...]] = set()
    members = []
    for index, name in enumerate(_spread(models)):
        own = seed * MANY_SEEDS + index
        order = next(order for order in _orders(own) if order not in seen)
        seen.add(order)
        members.append(
            Member(f"digits-{name}-{index:03d}", ARCHITECTURES[name], own, order)
        )
    return tuple(members)


def _orders(seed: int) -> Iterator[tuple[int, ...]]:
    # Ten digits have 3.6 million orders, and 200 models still meet a twin in one
    # fleet of 180: whoever comes second draws again.
    rng = random.Random(seed)
    while True:
        yield tuple(rng.sample(range(CLASSES), CLASSES))


def _spread(models: int) -> list[str]:
    """Architecture names by share; every architecture has a model if three have."""
    counts = {name: max(1, models * share // 100) for name, share in SHARES.items()}
    counts["mlp"] += models - sum(counts.values())
    names = [name for name, count in counts.items() for _ in range(count)]
    return names[:models]
