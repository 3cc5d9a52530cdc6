"""The store of the demo on disk: built once, reused while its recipe is the same.

Owns: the folder `<store>`, the recipe beside it, and the copy in a bucket. Must not:
touch a folder that the demo did not make.
"""

import asyncio
import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from loader import graph, manifest
from loader.errors import LoadFailed
from loader.pack import Exported, export, write
from loader.store import Missing, Store
from runtime.demo.digits import Digits
from runtime.demo.errors import DemoFailed
from runtime.demo.fleet import Member
from runtime.demo.nets import OUTPUT, Architecture
from runtime.demo.training import Trained, train_side_by_side

MAKING = 1
"""Raise it when nets, training or packing change: stores made before are rebuilt."""

BUILDING = "building"
FILES = ("model.safetensors", "graph.json", "model.json")
"""In the order in which they are laid down: a model without model.json is none."""

UPLOADS = 16
"""Models on their way to a bucket at once."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything a store follows from. Equal recipes: the store need not be rebuilt."""

    seed: int
    models: int

    def text(self) -> str:
        """The recipe as the file beside the store holds it."""
        said = {
            "making": MAKING,
            "formats": [manifest.FORMAT, graph.FORMAT],
            "seed": self.seed,
            "models": self.models,
            "torch": version("torch"),
            "scikit-learn": version("scikit-learn"),
        }
        return json.dumps(said, indent=2) + "\n"


@dataclass(frozen=True, slots=True)
class Advance:
    """Whom to tell how the making goes on: a training step, a packed model."""

    trained: Callable[[], None]
    packed: Callable[[Trained], None]


def recipe_file(folder: Path) -> Path:
    """The file beside the store that says how it was made."""
    return folder.with_name(folder.name + ".recipe.json")


def is_made(folder: Path, recipe: Recipe) -> bool:
    """True if the folder holds exactly the store of this recipe, completely."""
    note = recipe_file(folder)
    return note.is_file() and note.read_text() == recipe.text()


def make(
    folder: Path,
    recipe: Recipe,
    members: Sequence[Member],
    digits: Digits,
    advance: Advance,
) -> None:
    """Train and pack the whole fleet into `folder`, in place of what the demo left."""
    clear(folder)
    note = recipe_file(folder)
    folder.mkdir(parents=True, exist_ok=True)
    note.write_text(BUILDING)
    exported = {
        architecture: export_architecture(architecture)
        for architecture in {member.architecture for member in members}
    }
    with closing(train_side_by_side(members, digits, advance.trained)) as finished:
        for trained in finished:
            put_down(folder, trained, exported[trained.member.architecture])
            advance.packed(trained)
    note.write_text(recipe.text())


def export_architecture(architecture: Architecture) -> Exported:
    """The graph that all models of an architecture share."""
    example = {architecture.input: torch.rand(2, *architecture.shape)}
    return export(architecture.build().eval(), example, outputs=[OUTPUT])


def put_down(folder: Path, trained: Trained, exported: Exported) -> None:
    """Write one model's directory."""
    member = trained.member
    write(
        exported,
        folder / member.name / "1",
        weights=trained.weights,
        labels={
            "classes": " ".join(map(str, member.order)),
            "test-accuracy": f"{trained.accuracy:.4f}",
        },
    )


def clear(folder: Path) -> None:
    """Remove the models that an earlier demo put there, and nothing else."""
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not recipe_file(folder).is_file():
        raise DemoFailed(
            f"{folder} is not empty and was not made by the demo: "
            "choose another --store"
        )
    for child in folder.glob("digits-*-[0-9]*"):
        shutil.rmtree(child)


async def upload(
    folder: Path,
    members: Sequence[Member],
    store: Store,
    uploaded: Callable[[], None],
) -> None:
    """Bring the bucket to what the folder holds; models already there stay."""
    gate = asyncio.Semaphore(UPLOADS)

    async def one(member: Member) -> None:
        async with gate:
            await _upload_one(folder / member.name / "1", f"{member.name}/1", store)
        uploaded()

    try:
        async with asyncio.TaskGroup() as tasks:
            for member in members:
                tasks.create_task(one(member))
    except ExceptionGroup as group:
        # Not `except*`: until Python 3.11.3 what is raised there comes out in a group.
        failed, bugs = group.split(LoadFailed)
        if failed is None or bugs is not None:
            raise
        raise DemoFailed(f"upload: {failed.exceptions[0]}") from failed


async def _upload_one(directory: Path, path: str, store: Store) -> None:
    last = directory / FILES[-1]
    # model.json names the digests of the other two and is written last: where it is
    # the same, so is everything.
    try:
        there = await store.small(f"{path}/{last.name}")
    except Missing:
        there = b""
    if there == last.read_bytes():
        return
    for name in FILES:
        await store.put(f"{path}/{name}", (directory / name).read_bytes())
