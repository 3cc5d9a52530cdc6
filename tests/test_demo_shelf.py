"""The demo's store on disk and in a bucket: made, reused, never somebody else's."""

import json
from importlib.metadata import version

import numpy as np
import pytest

from loader.errors import StoreDenied
from loader.store import Missing, Store
from runtime.demo import shelf
from runtime.demo.digits import read_digits
from runtime.demo.errors import DemoFailed
from runtime.demo.fleet import muster
from runtime.demo.oracle import Oracle
from runtime.demo.references import read_references
from runtime.demo.training import Abandoned, train_side_by_side

pytest.importorskip("sklearn", reason="the demo needs scikit-learn's digits")

RECIPE = shelf.Recipe(seed=7, models=6)
MEMBERS = muster(RECIPE.seed, RECIPE.models)


@pytest.fixture(scope="module")
def digits():
    return read_digits()


@pytest.fixture(scope="module")
def made(tmp_path_factory, digits):
    folder = tmp_path_factory.mktemp("demo") / "store"
    steps, packed = [], []
    advance = shelf.Advance(lambda: steps.append(1), packed.append)
    shelf.make(folder, RECIPE, MEMBERS, digits, advance)
    assert steps
    assert {trained.member for trained in packed} == set(MEMBERS)
    return folder


def test_a_made_store_is_known_by_its_recipe(made):
    assert shelf.is_made(made, RECIPE)
    assert not shelf.is_made(made, shelf.Recipe(seed=8, models=6))
    assert not shelf.is_made(made, shelf.Recipe(seed=7, models=7))
    said = json.loads(shelf.recipe_file(made).read_text())
    assert said["torch"] == version("torch")


def test_every_model_lies_where_the_server_looks(made):
    assert sorted(child.name for child in made.iterdir()) == sorted(
        member.name for member in MEMBERS
    )
    for member in MEMBERS:
        files = {each.name for each in (made / member.name / "1").iterdir()}
        assert files == set(shelf.FILES)


def test_models_of_one_architecture_share_a_graph_byte_for_byte(made):
    graphs = {}
    for member in MEMBERS:
        found = (made / member.name / "1" / "graph.json").read_bytes()
        graphs.setdefault(member.architecture.name, set()).add(found)
    assert all(len(found) == 1 for found in graphs.values())
    assert len(graphs) == 3


def test_the_packed_models_know_the_digits_in_their_own_order(made, digits):
    known = read_references(made, MEMBERS, digits)
    orders = np.array([member.order for member in MEMBERS])
    labels = digits.test_labels.numpy()
    for place in range(len(MEMBERS)):
        own = orders[place][known.scores[place].argmax(1)]
        other = orders[place - 1][known.scores[place].argmax(1)]
        assert (own == labels).mean() > 0.93
        assert (other == labels).mean() < 0.7
    assert 200_000 * len(MEMBERS) < known.nbytes < 400_000 * len(MEMBERS)
    assert Oracle(known.scores, orders, labels, 0.0).separation() > 0.01


def test_a_model_that_cannot_be_read_back_is_named(made, digits):
    lost = muster(99, 6)[:1]
    manifest = made / lost[0].name / "1" / "model.json"
    before = manifest.read_bytes()
    manifest.write_bytes(b"{}")
    try:
        with pytest.raises(DemoFailed, match=rf"{lost[0].name}.*--fresh"):
            read_references(made, lost, digits)
    finally:
        manifest.write_bytes(before)


async def test_a_bucket_gets_every_file_and_only_once(made):
    store = Counting()
    told = []
    await shelf.upload(made, MEMBERS, store, lambda: told.append(1))
    assert len(told) == len(MEMBERS)
    assert len(store.puts) == len(MEMBERS) * len(shelf.FILES)
    for member in MEMBERS:
        mine = [path for path in store.puts if path.startswith(member.name + "/1/")]
        assert mine[-1].endswith("model.json")
        for name in shelf.FILES:
            path = f"{member.name}/1/{name}"
            assert await store.small(path) == (made / path).read_bytes()
    store.puts.clear()
    await shelf.upload(made, MEMBERS, store, lambda: told.append(1))
    assert store.puts == []


async def test_a_bucket_that_refuses_us_is_told_in_one_line(made):
    store = Counting(refuse=True)
    with pytest.raises(DemoFailed, match="upload: the bucket refused") as raised:
        await shelf.upload(made, MEMBERS, store, lambda: None)
    assert "\n" not in str(raised.value)


class Counting:
    """A bucket in memory that remembers what was put, or refuses everything."""

    def __init__(self, refuse=False):
        self.inside = Store.open("memory://")
        self.refuse = refuse
        self.puts = []

    async def small(self, path):
        if self.refuse:
            raise Missing
        return await self.inside.small(path)

    async def put(self, path, data):
        if self.refuse:
            raise StoreDenied("the bucket refused")
        self.puts.append(path)
        await self.inside.put(path, data)


def test_somebody_elses_folder_is_left_alone(tmp_path, digits):
    folder = tmp_path / "models"
    (folder / "digits-mlp-000").mkdir(parents=True)
    with pytest.raises(DemoFailed, match="not made by the demo"):
        shelf.make(folder, RECIPE, MEMBERS, digits, silent())
    assert (folder / "digits-mlp-000").is_dir()
    assert not shelf.recipe_file(folder).exists()


def test_clearing_takes_only_what_the_demo_makes(tmp_path):
    folder = tmp_path / "store"
    for name in ("digits-mlp-000", "digits-cnn-199", "sentiment"):
        (folder / name / "1").mkdir(parents=True)
    shelf.recipe_file(folder).write_text(shelf.BUILDING)
    shelf.clear(folder)
    assert [child.name for child in folder.iterdir()] == ["sentiment"]


def test_an_interrupted_making_is_not_taken_for_a_store(tmp_path, digits):
    folder = tmp_path / "store"

    def stop(trained):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shelf.make(folder, RECIPE, MEMBERS, digits, shelf.Advance(lambda: None, stop))
    assert not shelf.is_made(folder, RECIPE)
    shelf.clear(folder)  # and the next run may begin anew
    assert not any(folder.iterdir())


def test_leaving_early_ends_the_groups_under_way(digits):
    steps = []
    finished = train_side_by_side(MEMBERS, digits, lambda: steps.append(1))
    next(finished)
    finished.close()
    after = len(steps)
    assert list(finished) == []
    assert len(steps) == after


def test_a_training_that_fails_is_told(digits):
    def fail():
        raise Abandoned

    with pytest.raises(Abandoned):
        list(train_side_by_side(MEMBERS, digits, fail))


def silent():
    return shelf.Advance(lambda: None, lambda trained: None)
