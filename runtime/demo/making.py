"""The making of the store, as it is shown: training, packing, uploading.

Owns: when a store is made anew, and the bars over that. Must not: know how a model is
trained or packed.
"""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from loader.store import Store
from runtime.demo import shelf
from runtime.demo.bars import bars
from runtime.demo.digits import Digits
from runtime.demo.errors import DemoFailed
from runtime.demo.fleet import Member
from runtime.demo.options import Options
from runtime.demo.training import Trained, groups, steps


def prepare(
    options: Options, members: Sequence[Member], digits: Digits, console: Console
) -> None:
    """The store as the recipe says: reused, or made anew; then in the bucket."""
    recipe = shelf.Recipe(options.seed, options.models)
    if options.fresh or not shelf.is_made(options.folder, recipe):
        build(options.folder, recipe, members, digits, console)
    else:
        console.print(f"using the store in {options.folder} (--fresh makes a new one)")
    if not options.remote:
        return
    if options.store.startswith("memory:"):
        raise DemoFailed("memory:// ends with its process; the server is another one")
    try:
        store = Store.open(options.store)
    except ValueError as error:
        raise DemoFailed(str(error)) from error
    with bars(console) as shown:
        bar = shown.add_task("uploading", total=len(members), said="")
        asyncio.run(
            shelf.upload(options.folder, members, store, lambda: shown.advance(bar))
        )


def build(
    folder: Path,
    recipe: shelf.Recipe,
    members: Sequence[Member],
    digits: Digits,
    console: Console,
) -> None:
    """Train and pack, with a bar for each."""
    accuracies: list[float] = []
    with bars(console) as shown:
        total = sum(steps(group, digits) for group in groups(members))
        training = shown.add_task("training", total=total, said="")
        packing = shown.add_task("packing", total=len(members), said="")

        def packed(trained: Trained) -> None:
            accuracies.append(trained.accuracy)
            shown.update(packing, advance=1, said=trained.member.name)

        advance = shelf.Advance(lambda: shown.advance(training), packed)
        shelf.make(folder, recipe, members, digits, advance)
    console.print(
        f"trained {len(accuracies)} models; of the unseen test images they get "
        f"{np.mean(accuracies):.1%} right (the weakest {min(accuracies):.1%})"
    )
