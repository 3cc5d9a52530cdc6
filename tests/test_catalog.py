"""Which models exist: found on demand, believed for a while, read again in the back."""

import asyncio
import gc
import weakref
from pathlib import Path

import pytest

from loader.errors import ArtifactRefused, ModelNotFound, StoreUnreachable
from loader.store import Missing, Store
from runtime.catalog import Catalog
from runtime.errors import BadRequest, Draining
from tests import tiny_models


class WatchedStore(Store):
    """A real folder; counts what it is asked, can be down, can be slow."""

    def __init__(self, folder: Path) -> None:
        inner = Store.open(str(folder))
        super().__init__(inner._backend, inner.scheme)
        self.asked: list[str] = []
        self.down = False
        self.gate: asyncio.Event | None = None

    async def _ask(self, path: str) -> None:
        self.asked.append(path)
        if self.gate is not None:
            await self.gate.wait()
        if self.down:
            raise StoreUnreachable("the model store could not be read")

    async def small(self, path, limit=1 << 20):
        await self._ask(path)
        return await super().small(path, limit)

    async def children(self, folder):
        await self._ask(folder)
        return await super().children(folder)


@pytest.fixture
def store(tmp_path: Path) -> WatchedStore:
    tiny_models.linear(tmp_path, "m", 1, "1")
    tiny_models.linear(tmp_path, "m", 2, "2")
    tiny_models.linear(tmp_path, "m", 10, "10")
    tiny_models.write(tmp_path / "flat", tiny_models.files(5))
    store = WatchedStore(tmp_path)
    store.folder = tmp_path
    return store


async def background(catalog: Catalog) -> None:
    while catalog._flights:
        await asyncio.wait(list(catalog._flights.values()))
        await asyncio.sleep(0)


async def test_the_latest_version_is_the_highest_number(store) -> None:
    catalog = Catalog(store)
    assert (await catalog.find("m")).version == "10"
    assert (await catalog.find("m", "2")).version == "2"
    assert await catalog.versions("m") == ["1", "2", "10"]


async def test_a_manifest_alone_is_version_1(store) -> None:
    catalog = Catalog(store)
    for version in ("", "1"):
        spec = await catalog.find("flat", version)
        assert (spec.version, spec.directory) == ("1", "flat")


async def test_a_version_without_its_manifest_is_not_there_yet(store) -> None:
    """Buckets have no rename: a version's files appear one after the other."""
    catalog = Catalog(store, ttl=0)
    old = await catalog.find("m")
    made = tiny_models.files(11)
    manifest = made.pop("model.json")
    tiny_models.write(store.folder / "m" / "11", made)
    await catalog.find("m")
    await background(catalog)
    known = catalog.known("m")
    assert known is not None
    assert known.key == old.key
    await background(catalog)
    assert (await Catalog(store).find("m")).version == "10"
    with pytest.raises(ModelNotFound, match="version 11"):
        await catalog.find("m", "11")
    tiny_models.write(store.folder / "m" / "11", {"model.json": manifest})
    assert (await Catalog(store).find("m")).version == "11"


async def test_a_model_of_unfinished_versions_is_unknown(store) -> None:
    for version in range(1, 40):
        (store.folder / "void" / str(version)).mkdir(parents=True)
        (store.folder / "void" / str(version) / "model.safetensors").touch()
    with pytest.raises(ModelNotFound, match="'void' is not found"):
        await Catalog(store).find("void")
    assert len(store.asked) < 12, "bounded, however many there are"


@pytest.mark.parametrize("name", ["0100", "00", "9" * 19, "9" * 200, "1e3"])
async def test_a_folder_that_is_no_version_is_passed_over(store, name) -> None:
    tiny_models.linear(store.folder, "m", 7, name)
    catalog = Catalog(store)
    assert await catalog.versions("m") == ["1", "2", "10"]
    assert (await catalog.find("m")).version == "10"


async def test_what_is_known_costs_nothing(store) -> None:
    catalog = Catalog(store)
    spec = await catalog.find("m")
    store.asked.clear()
    assert catalog.known("m") is spec
    assert await catalog.find("m") is spec
    assert store.asked == []


async def test_all_who_ask_share_one_look(store) -> None:
    catalog = Catalog(store)
    store.gate = asyncio.Event()
    asking = [asyncio.create_task(catalog.find("m")) for _ in range(1000)]
    await asyncio.sleep(0)
    asking[0].cancel()
    store.gate.set()
    specs = await asyncio.gather(*asking[1:])
    assert len({id(spec) for spec in specs}) == 1
    assert len(store.asked) == 2


@pytest.mark.parametrize("version", ["", "7"])
async def test_the_unknown_is_remembered_for_a_while(store, version) -> None:
    catalog = Catalog(store, unknown_ttl=1000)
    for _ in range(3):
        with pytest.raises(ModelNotFound, match="'nope'"):
            await catalog.find("nope", version)
    assert len(store.asked) == 1
    soon = Catalog(store, unknown_ttl=0)
    for _ in range(2):
        with pytest.raises(ModelNotFound):
            await soon.find("nope")
    tiny_models.linear(store.folder, "nope")
    assert (await soon.find("nope")).name == "nope"


@pytest.mark.parametrize("version", ["", "7"])
async def test_the_unknown_holds_no_call_that_asked_for_it(store, version) -> None:
    class Message:
        """What a call brought along; 64 MiB of it, maybe."""

    catalog = Catalog(store, unknown_ttl=1000)
    held: list[weakref.ref] = []

    async def call() -> str:
        message = Message()
        held.append(weakref.ref(message))
        try:
            await catalog.find("nope", version)
        except ModelNotFound as error:
            return error.message
        return ""

    texts = {await call() for _ in range(3)}
    gc.collect()
    assert [ref for ref in held if ref() is not None] == []
    assert len(texts) == 1
    assert "'nope'" in texts.pop()


@pytest.mark.parametrize(
    ("model", "version"),
    [("../m", ""), ("m/1", ""), (".m", ""), ("", ""), ("m", "1/../2"), ("m", "-1"),
     ("m", "01"), ("a\nb", ""), ("m", "latest")],
)  # fmt: skip
async def test_no_path_leaves_the_prefix(store, model, version) -> None:
    with pytest.raises(BadRequest) as refused:
        await Catalog(store).find(model, version)
    assert store.asked == []
    assert "\n" not in refused.value.message


async def test_a_store_that_is_down_takes_no_known_model_down(store) -> None:
    catalog = Catalog(store, ttl=0)
    spec = await catalog.find("m", "1")
    store.down = True
    for _ in range(3):
        assert catalog.known("m", "1") is spec
        await background(catalog)
    with pytest.raises(StoreUnreachable):
        await catalog.find("m", "2")


async def test_a_new_version_is_seen_after_the_ttl(store) -> None:
    catalog = Catalog(store, ttl=0)
    assert (await catalog.find("m")).version == "10"
    tiny_models.linear(store.folder, "m", 11, "11")
    catalog.known("m")
    await background(catalog)
    assert catalog.known("m").version == "11"


async def test_a_new_generation_waits_until_it_is_accepted(store) -> None:
    asked = []
    answers = [False, True]

    async def replaced(old, new) -> bool:
        asked.append((old.key, new.key))
        return answers.pop(0)

    catalog = Catalog(store, ttl=0, replaced=replaced)
    old = await catalog.find("m", "1")
    tiny_models.linear(store.folder, "m", 99, "1")
    assert catalog.known("m", "1") is old
    await background(catalog)
    assert catalog.known("m", "1") is old, "refused: stay with the old one"
    await background(catalog)
    new = catalog.known("m", "1")
    assert new.key != old.key
    assert asked == [(old.key, new.key)] * 2
    await background(catalog)


async def test_a_removed_model_becomes_unknown(store) -> None:
    catalog = Catalog(store, ttl=0)
    await catalog.find("m", "1")
    (store.folder / "m" / "1" / "model.json").unlink()
    catalog.known("m", "1")
    await background(catalog)
    assert catalog.known("m", "1") is None
    with pytest.raises(ModelNotFound):
        await catalog.find("m", "1")


async def test_doubt_makes_the_next_look_fresh(store) -> None:
    catalog = Catalog(store)
    spec = await catalog.find("m", "1")
    catalog.doubt(spec)
    assert catalog.known("m", "1") is None
    await catalog.find("m", "1")


async def test_a_broken_manifest_is_refused_by_place(store) -> None:
    (store.folder / "m" / "1" / "model.json").write_bytes(b'{"format": 2}')
    with pytest.raises(ArtifactRefused, match=r"model\.json"):
        await Catalog(store).find("m", "1")


async def test_a_huge_manifest_is_not_read(store) -> None:
    (store.folder / "m" / "1" / "model.json").write_bytes(b" " * (2 << 20))
    with pytest.raises(ArtifactRefused, match="limit"):
        await Catalog(store).find("m", "1")


async def test_nothing_is_listed_but_one_model(store) -> None:
    """100,000 models must cost a request nothing: only this model's folder is asked."""
    await Catalog(store).find("m")
    assert store.asked == ["m/", "m/10/model.json"]
    with pytest.raises(Missing):
        await store.small("m/model.json")


async def test_closing_ends_what_is_under_way(store) -> None:
    catalog = Catalog(store)
    store.gate = asyncio.Event()
    asking = asyncio.create_task(catalog.find("m"))
    await asyncio.sleep(0)
    await catalog.aclose()
    with pytest.raises(Draining):
        await asking
