"""Every way a store can misbehave, at every place it hurts, in a whole engine.

A row of CASES: what the store does, how often, and what becomes of a request when it
does so to the manifest, to the first range of the weights, and to a later range.
Whatever it is: the answer is right or the error is ours, models that are served
already stay served, and every byte is given back.
"""

import asyncio
import contextlib
import gc
import itertools
import json
from collections.abc import AsyncIterator, Iterator

import pytest
import torch
from safetensors.torch import save

import loader.store
from loader.digest import SMALLEST
from loader.errors import (
    ArtifactRefused,
    LoadFailed,
    ModelNotFound,
    StoreDenied,
    StoreUnreachable,
)
from loader.ranges import CHUNK
from runtime.compose import composed
from runtime.config import Settings
from runtime.engine import Request
from runtime.errors import Draining, Refused
from runtime.observer import NullObserver
from tests import fault_server as faults
from tests import tiny_models
from tests.fault_server import BUCKET, FaultServer
from tests.quick_store import QuickStore

ENDLESS = 1 << 30
LARGE = 2 * CHUNK + 12345
"""Bytes of padding that make three ranges of a model."""
SECRET = "CANARY/secret"

HEALS = "answers rightly"
PLACES = {
    "manifest": ("ill/1/model.json", 0),
    "start": ("ill/1/model.safetensors", 0),
    "middle": ("ill/1/model.safetensors", CHUNK),
}

Lost, Bad, Denied = StoreUnreachable, ArtifactRefused, StoreDenied

# fault, times, (manifest, start, middle)
CASES = {
    "busy three times": (faults.status("503 Slow Down"), 3, (HEALS, HEALS, HEALS)),
    "busy for ever": (faults.status("503 Slow Down"), ENDLESS, (Lost, Lost, Lost)),
    "error once": (faults.status("500 Oops"), 1, (HEALS, HEALS, HEALS)),
    "error for ever": (faults.status("500 Oops"), ENDLESS, (Lost, Lost, Lost)),
    "too many": (faults.status("429 Too Many"), ENDLESS, (Lost, Lost, Lost)),
    "denied": (faults.status("403 Forbidden"), ENDLESS, (Denied, Denied, Denied)),
    "gone": (faults.status("404 Gone"), ENDLESS, (ModelNotFound, Bad, Bad)),
    "cut once": (faults.cut, 1, (HEALS, HEALS, HEALS)),
    "cut always": (faults.cut, ENDLESS, (Lost, Lost, Lost)),
    "reset once": (faults.reset, 1, (HEALS, HEALS, HEALS)),
    "reset always": (faults.reset, ENDLESS, (Lost, Lost, Lost)),
    "reset at once": (faults.reset_at_once, ENDLESS, (Lost, Lost, Lost)),
    "a flipped bit": (faults.flip, ENDLESS, (Bad, Bad, Bad)),
    "short": (faults.short, ENDLESS, (Bad, Lost, Lost)),
    "no ranges": (faults.no_ranges, ENDLESS, (HEALS, Lost, Lost)),
    "a page": (faults.page, ENDLESS, (Bad, Lost, Lost)),
    "a page as range": (faults.page_as_range, ENDLESS, (Bad, Bad, Bad)),
    "hang": (faults.hang, ENDLESS, (Lost, Lost, Lost)),
    "stall": (faults.stall, ENDLESS, (Lost, Lost, Lost)),
    "drip": (faults.drip, ENDLESS, (Lost, Lost, Lost)),
    "gzip": (faults.zipped, ENDLESS, (Bad, Lost, Lost)),
    "another range": (faults.other_range, ENDLESS, (Bad, Lost, Lost)),
    "another size": (faults.other_total, ENDLESS, (HEALS, Bad, HEALS)),
    "no HTTP": (faults.garbage, ENDLESS, (Lost, Lost, Lost)),
    "endless": (faults.endless, ENDLESS, (Bad, Lost, Lost)),
    "overlong": (faults.overlong, ENDLESS, (Bad, Lost, Lost)),
}
HANGING = ("hang", "stall", "drip")
GENEROUS, SHORT = 15.0, 1.5
"""Seconds that a request to the store may take. Short only where they will pass."""


WAYS = ("whole", "chunks")
"""What weights are verified by."""


def model_files(factor: float, extra: int = 0, way: str = "whole") -> dict[str, bytes]:
    """tiny_models.files, but with padding in which no two ranges are the same."""
    made = tiny_models.files(factor)
    tensors = {"w": torch.eye(4) * factor, "b": torch.zeros(4)}
    if extra:
        seed = torch.Generator().manual_seed(int(factor))
        tensors["__pad0"] = torch.randint(
            256, (extra,), dtype=torch.uint8, generator=seed
        )
    data = save(tensors)
    manifest = json.loads(made["model.json"])
    manifest["weights"] = tiny_models.ref("model.safetensors", data)
    made["model.safetensors"] = data
    made["model.json"] = json.dumps(manifest).encode()
    return made if way == "whole" else tiny_models.by_chunks(made)


@pytest.fixture(scope="module")
def shelf() -> Iterator[dict[str, bytes]]:
    """Objects: `well`, small and left alone; `ill`, in three ranges, verified as a
    whole; its manifest for the other way."""
    ill = model_files(3, LARGE)
    made = {"well": model_files(2), "ill": ill}
    by_chunks = tiny_models.by_chunks(ill)["model.json"]
    made["ill"]["model.json, chunks"] = by_chunks
    gc.collect()
    gc.freeze()  # what was there before us need not be looked at after each test
    yield {f"{m}/1/{f}": data for m, files in made.items() for f, data in files.items()}
    gc.unfreeze()


@pytest.fixture
async def server(shelf, monkeypatch) -> AsyncIterator[FaultServer]:
    monkeypatch.setattr(loader.store, "RETRIES", loader.store.RETRIES)  # set back
    server = FaultServer()
    server.objects.update(shelf)
    async with server.running():
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", SECRET)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        monkeypatch.setenv("AWS_REGION", "us-east-1")
        yield server


@contextlib.asynccontextmanager
async def engine_over(
    server: FaultServer, load_timeout: float = GENEROUS, loader: str = "threads"
):
    """An engine that serves `well`; what it leaves behind is looked at."""
    before = asyncio.all_tasks()
    store = QuickStore.open(f"s3://{BUCKET}")
    settings = Settings(
        store=f"s3://{BUCKET}",
        device="cpu",
        budget="64MiB",
        load_timeout=load_timeout,
        loader=loader,
    )
    async with composed(settings, NullObserver(), store=store) as engine:
        if loader == "process":
            await until_carried(engine)
        assert await ask(engine, "well") == [2.0] * 4
        yield engine
        assert await ask(engine, "well") == [2.0] * 4
    assert (await engine.snapshot()).held == 0
    del engine
    gc.collect()
    assert large_tensors() == []
    left = {task for task in asyncio.all_tasks() - before if not server.owns(task)}
    assert left == set()


async def until_carried(engine) -> None:
    """There is a process that loads; the test's time limit is the bound."""
    while not (await engine.snapshot()).tiers.porter:  # noqa: ASYNC110
        await asyncio.sleep(0.01)


def large_tensors() -> list[tuple[int, ...]]:
    """Shapes of the tensors as large as `ill` that anybody still holds."""
    return [
        tuple(thing.shape)
        for thing in gc.get_objects()
        if type(thing) is torch.Tensor and thing.nbytes >= LARGE
    ]


async def ask(engine, model: str) -> list[float]:
    answer = await engine.predict(Request(model, {"x": torch.ones(1, 4)}))
    return answer.outputs[0][1][0].tolist()


async def outcome(engine, server: FaultServer, *right: float) -> object:
    """HEALS, or the error, which has to be one of ours and to tell nothing."""
    try:
        answered = await ask(engine, "ill")
    except (LoadFailed, Refused) as error:
        failure = error
    else:
        assert answered in [[factor] * 4 for factor in right or (3.0,)]
        return HEALS
    for told in (SECRET, server.url, "127.0.0", "rror perform", "obstore"):
        assert told not in failure.message
    return failure


async def struck(server: FaultServer, asking: asyncio.Task) -> None:
    """Until the fault is met; never beyond the request that should meet it."""
    met = asyncio.create_task(server.struck.wait())
    await asyncio.wait((met, asking), return_when=asyncio.FIRST_COMPLETED)
    met.cancel()
    assert server.struck.is_set(), asking


async def healed(engine, server: FaultServer, right: float = 3.0) -> None:
    """Ask until it is answered; the test's time limit is the bound."""
    while await outcome(engine, server, right) is not HEALS:  # noqa: ASYNC110
        await asyncio.sleep(0.02)  # its failure is remembered for a moment


async def only_well_is_held(engine) -> bool:
    snapshot = await engine.snapshot()
    return snapshot.held == sum(
        r.nbytes for r in snapshot.residents if r.name == "well"
    )


def verified_by(server: FaultServer, way: str) -> None:
    """`ill` is verified this way."""
    if way == "chunks":
        by_chunks = server.objects["ill/1/model.json, chunks"]
        server.objects["ill/1/model.json"] = by_chunks


async def meets(engine, server: FaultServer, expect: object) -> None:
    """A request meets the fault, and ends as it should; `well` stays served."""
    asking = asyncio.create_task(outcome(engine, server))
    await struck(server, asking)
    assert await ask(engine, "well") == [2.0] * 4
    result = await asking
    if expect is HEALS:
        assert result is HEALS
    else:
        assert isinstance(result, expect), repr(result)
        assert await only_well_is_held(engine)


@pytest.mark.parametrize(
    ("place", "way"),
    [("manifest", "whole"), *itertools.product(("start", "middle"), WAYS)],
)
@pytest.mark.parametrize("case", CASES)
async def test_a_fault(server, monkeypatch, case: str, place: str, way: str) -> None:
    verified_by(server, way)
    limit = SHORT if case in HANGING else GENEROUS
    monkeypatch.setattr(loader.store, "PATIENCE", limit)
    fault, times, expected = CASES[case]
    expect = expected[list(PLACES).index(place)]
    server.breaks(fault, *PLACES[place], times)
    async with engine_over(server, limit) as engine:
        await meets(engine, server, expect)


@pytest.mark.parametrize("place", ["start", "middle"])
@pytest.mark.parametrize("case", CASES)
async def test_a_fault_that_a_porter_meets(
    server, monkeypatch, case: str, place: str
) -> None:
    """The same answers, from the other process."""
    verified_by(server, "chunks")
    limit = SHORT if case in HANGING else GENEROUS
    fault, times, expected = CASES[case]
    expect = expected[list(PLACES).index(place)]
    async with engine_over(server, limit, "process") as engine:
        server.breaks(fault, *PLACES[place], times)
        await meets(engine, server, expect)
        assert (await engine.snapshot()).tiers.porter, "it lives on"


@pytest.mark.parametrize("place", PLACES)
async def test_a_redirect_leads_to_no_other_host(server, place: str) -> None:
    met = []

    async def elsewhere(reader, writer) -> None:
        met.append(await reader.read(100))
        writer.close()

    other = await asyncio.start_server(elsewhere, "127.0.0.2", 0)
    port = other.sockets[0].getsockname()[1]
    server.breaks(faults.redirect(f"http://127.0.0.2:{port}/x"), *PLACES[place])
    async with other, engine_over(server) as engine:
        assert isinstance(await outcome(engine, server), StoreUnreachable)
        assert await only_well_is_held(engine)
    assert met == []


@pytest.mark.parametrize("place", PLACES)
async def test_a_body_without_end_is_not_drunk(server, place: str) -> None:
    server.breaks(faults.overlong, *PLACES[place])
    async with engine_over(server) as engine:
        expect = ArtifactRefused if place == "manifest" else StoreUnreachable
        assert isinstance(await outcome(engine, server), expect)
        assert await only_well_is_held(engine)
    assert server.flooded < faults.FLOOD / 2


@pytest.mark.parametrize("place", ["start", "middle"])
async def test_a_damaged_range_is_asked_for_again(server, place: str) -> None:
    """Alone: what was right is not fetched twice. Whichever range comes first from
    `start` on is the one that is damaged."""
    key, start = PLACES[place]
    verified_by(server, "chunks")
    server.breaks(faults.flip, key, start, 1)
    async with engine_over(server) as engine:
        assert await outcome(engine, server) is HEALS
    asked = [a.start for a in server.gets(key)]
    for once in (0, CHUNK, 2 * CHUNK):
        asked.remove(once)
    (again,) = asked
    assert again >= start
    assert again % SMALLEST == 0, "from the chunk on that was damaged"


@pytest.mark.parametrize("way", WAYS)
async def test_a_header_that_came_damaged_is_asked_for_again(server, way) -> None:
    verified_by(server, way)
    key, start = PLACES["start"]
    server.breaks(faults.flip_in(8), key, start, 1, start + 1)  # its first brace
    async with engine_over(server) as engine:
        assert await outcome(engine, server) is HEALS


async def test_a_damaged_header_that_reads_well_places_nothing(server) -> None:
    """A name with a bit flipped, of a tensor nobody misses: the plan made of it goes
    when the bytes that come instead are verified."""
    key, start = PLACES["start"]
    verified_by(server, "chunks")
    at = server.objects[key].index(b"__pad0") + len("__pad")
    server.breaks(faults.flip_in(at), key, start, 1, start + 1)
    async with engine_over(server) as engine:
        assert await outcome(engine, server) is HEALS


async def test_without_chunks_a_flipped_bit_costs_the_load(server) -> None:
    server.breaks(faults.flip, *PLACES["middle"], 1)
    async with engine_over(server) as engine:
        assert isinstance(await outcome(engine, server), ArtifactRefused)


@pytest.mark.parametrize("honest", [True, False])
@pytest.mark.parametrize("place", ["start", "middle"])
@pytest.mark.parametrize("way", WAYS)
async def test_an_object_replaced_while_it_is_read(server, place, honest, way) -> None:
    """Never a file put together from two, whether or not the store knows If-Match."""
    verified_by(server, way)
    key, start = PLACES[place]
    new = model_files(5, LARGE)["model.safetensors"]
    server.breaks(faults.replaced(key, new, honest), key, start)
    async with engine_over(server) as engine:
        result = await outcome(engine, server)
        assert isinstance(result, (StoreUnreachable, ArtifactRefused))
        assert await only_well_is_held(engine)


async def test_a_model_published_anew_while_it_is_read(server, monkeypatch) -> None:
    """Whatever the first request got, the new model answers soon after."""
    monkeypatch.setattr(StoreUnreachable, "lasts", 0.01)
    key, start = PLACES["middle"]
    made = model_files(5, LARGE)
    server.breaks(faults.replaced(key, made["model.safetensors"]), key, start, 1)
    async with engine_over(server) as engine:
        asking = asyncio.create_task(outcome(engine, server, 3.0, 5.0))
        await struck(server, asking)
        for name in ("model.json", "graph.json"):
            server.objects[f"ill/1/{name}"] = made[name]
        await asking
        await healed(engine, server, 5.0)
        assert await ask(engine, "ill") == [5.0] * 4


async def test_a_store_that_comes_back_is_asked_again(server, monkeypatch) -> None:
    monkeypatch.setattr(StoreUnreachable, "lasts", 0.01)
    server.breaks(faults.status("503 Slow Down"), *PLACES["middle"])
    async with engine_over(server) as engine:
        assert isinstance(await outcome(engine, server), StoreUnreachable)
        server.mends()
        await healed(engine, server)


async def test_all_who_wait_get_the_same_error_from_one_load(server) -> None:
    server.breaks(faults.status("403 Forbidden"), *PLACES["middle"])
    async with engine_over(server) as engine:
        asking = (outcome(engine, server) for _ in range(50))
        results = await asyncio.gather(*asking)
        assert {type(result) for result in results} == {StoreDenied}
        assert sum(a.start == 0 for a in server.gets(PLACES["start"][0])) == 1
        assert await only_well_is_held(engine)


@pytest.mark.parametrize(
    ("place", "way"),
    [("manifest", "whole"), *itertools.product(("start", "middle"), WAYS)],
)
async def test_who_leaves_a_hanging_load_leaves_nothing(server, place, way) -> None:
    verified_by(server, way)
    server.breaks(faults.stall, *PLACES[place])
    async with engine_over(server, load_timeout=60) as engine:
        asking = asyncio.create_task(ask(engine, "ill"))
        await struck(server, asking)
        asking.cancel()
        (left,) = await asyncio.gather(asking, return_exceptions=True)
        assert isinstance(left, asyncio.CancelledError)
        while not await only_well_is_held(engine):  # noqa: ASYNC110 - nobody tells us
            await asyncio.sleep(0.005)


async def test_a_drain_does_not_wait_for_a_hanging_store(server) -> None:
    server.breaks(faults.hang, *PLACES["middle"])
    before = asyncio.all_tasks()
    settings = Settings(store=f"s3://{BUCKET}", device="cpu", budget="64MiB")
    async with composed(settings, NullObserver()) as engine:
        asking = asyncio.create_task(outcome(engine, server))
        await struck(server, asking)
        await engine.drain()
        assert isinstance(await asking, Draining)
    assert (await engine.snapshot()).held == 0
    del engine
    gc.collect()
    assert large_tensors() == []
    assert not {t for t in asyncio.all_tasks() - before if not server.owns(t)}
