"""The steps of a predict on a hit, each timed on its own (run by bench/micro.py).

Owns: what is timed, and on what. Must not: assert on times. Each test times a call of
`PER` operations, so that the timer's own cost and the event loop's entry vanish; what
bench/micro.py reports is the time of one.

The order is the order of a predict. 50 models are resident and asked in turn, since a
policy may cost more the more it has to keep in order.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice, repeat
from pathlib import Path

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from bench.client import closed_loop, dialled
from bench.process import hotset, servers
from bench.traffic import fleet, one_model, request
from eviction.ledger import Ledger
from eviction.policies import POLICIES
from loader.graphs import GraphShelf
from loader.load import Loader, Model
from loader.manifest import ModelSpec
from loader.memory import memory_on
from loader.store import Store
from runtime.batch import Batcher
from runtime.cache import ModelCache
from runtime.catalog import Catalog
from runtime.compose import composed
from runtime.conformance import Form, conform
from runtime.counts import Counts
from runtime.engine import Answer
from runtime.lanes import Lanes
from runtime.sources import load
from runtime.wire import decode, encode

PER = 50
RESIDENT = 50
CPU = torch.device("cpu")
Work = Callable[[], object]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("store")
    one_model(place)
    fleet(place, RESIDENT)
    return place


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as made:
        yield made


@dataclass(frozen=True, slots=True)
class Parts:
    """What an engine is made of, each within reach."""

    catalog: Catalog
    cache: ModelCache[Model]
    batcher: Batcher
    specs: list[ModelSpec]


@contextlib.asynccontextmanager
async def parts(store: Path, policy: str) -> AsyncIterator[Parts]:
    """As runtime/compose.py puts them together, with everything resident."""
    kept = Store.open(str(store))
    threads, lanes = ThreadPoolExecutor(2), Lanes(CPU, 1)
    shelf = GraphShelf(kept, CPU, threads, 16)
    loader = Loader(kept, shelf, memory_on(CPU), threads)
    cache = ModelCache(loader, POLICIES[policy](), Ledger(1 << 30), Counts())
    catalog = Catalog(kept, ttl=3600)
    names = ["mlp", *(f"mlp-{index:04d}" for index in range(RESIDENT))]
    specs = [await catalog.find(name) for name in names]
    for spec in specs:
        async with cache.lease(spec):
            pass
    yield Parts(catalog, cache, Batcher(lanes, lambda *_: None, 1000), specs)
    await cache.aclose()
    await catalog.aclose()
    await shelf.aclose()
    lanes.close()
    threads.shutdown()


@contextlib.contextmanager
def within(
    runner: asyncio.Runner, block: contextlib.AbstractAsyncContextManager[Parts]
) -> Iterator[Parts]:
    """An async block around a sync test."""
    yield runner.run(block.__aenter__())
    runner.run(block.__aexit__(None, None, None))


@pytest.fixture(scope="module", params=["lru", "gdsf", "tournament"])
def by_policy(
    request: pytest.FixtureRequest, runner: asyncio.Runner, store: Path
) -> Iterator[Parts]:
    with within(runner, parts(store, request.param)) as made:
        yield made


@pytest.fixture(scope="module")
def made(runner: asyncio.Runner, store: Path) -> Iterator[Parts]:
    with within(runner, parts(store, "gdsf")) as them:
        yield them


def timed(benchmark: BenchmarkFixture, work: Work, per: int = PER) -> None:
    benchmark.extra_info["per"] = per
    benchmark(work)


def timed_async(
    benchmark: BenchmarkFixture,
    runner: asyncio.Runner,
    work: Callable[[], Coroutine[None, None, object]],
    per: int = PER,
) -> None:
    timed(benchmark, lambda: runner.run(work()), per)


def test_decode(benchmark: BenchmarkFixture) -> None:
    message = request("mlp")
    timed(benchmark, lambda: [decode(message) for _ in range(PER)])


def test_catalog_known(
    benchmark: BenchmarkFixture, runner: asyncio.Runner, made: Parts
) -> None:
    names = [spec.name for spec in made.specs[:PER]]

    async def work() -> None:
        for name in names:
            made.catalog.known(name)

    timed_async(benchmark, runner, work)


def test_conform(benchmark: BenchmarkFixture, made: Parts) -> None:
    asked, form = decode(request("mlp")), Form(made.specs[0])
    timed(benchmark, lambda: [form.fit(asked) for _ in range(PER)])


def test_lease_on_a_hit(
    benchmark: BenchmarkFixture, runner: asyncio.Runner, by_policy: Parts
) -> None:
    specs, cache = by_policy.specs[:PER], by_policy.cache

    async def work() -> None:
        for spec in specs:
            life = cache.taken(spec.key)
            assert life is not None
            cache.give_back(life)

    timed_async(benchmark, runner, work)


def test_forward_alone(benchmark: BenchmarkFixture, made: Parts) -> None:
    """The graph over its weights: what no server can be quicker than."""
    model = made.cache.residencies[made.specs[0].key].model
    assert model is not None
    inputs = conform(decode(request("mlp")), made.specs[0])

    def work() -> None:
        with torch.inference_mode():
            for _ in range(PER):
                model.forward(inputs)

    timed(benchmark, work)


def test_batcher_run(
    benchmark: BenchmarkFixture, runner: asyncio.Runner, made: Parts
) -> None:
    spec = made.specs[0]
    asked = Form(spec).fit(decode(request("mlp")))

    async def work() -> None:
        async with made.cache.lease(spec) as model:
            for _ in range(PER):
                await made.batcher.run(model, asked)

    timed_async(benchmark, runner, work)


def test_engine_predict(
    benchmark: BenchmarkFixture, runner: asyncio.Runner, store: Path
) -> None:
    asked = decode(request("mlp"))
    settings = load({"store": str(store), "device": "cpu", "policy": "gdsf"}, None, {})
    block = composed(settings, Counts())
    engine = runner.run(block.__aenter__())

    async def work() -> None:
        for _ in range(PER):
            await engine.predict(asked)

    timed_async(benchmark, runner, work)
    runner.run(block.__aexit__(None, None, None))


def test_encode(
    benchmark: BenchmarkFixture, runner: asyncio.Runner, store: Path
) -> None:
    asked = decode(request("mlp"))
    settings = load({"store": str(store), "device": "cpu", "policy": "gdsf"}, None, {})

    async def one() -> Answer:
        async with composed(settings, Counts()) as engine:
            return await engine.predict(asked)

    answer = runner.run(one())
    timed(benchmark, lambda: [encode(answer) for _ in range(PER)])


def test_predict_over_a_socket(
    benchmark: BenchmarkFixture, store: Path, tmp_path: Path
) -> None:
    """A real server process, one caller, one call at a time."""
    raw = request("mlp").SerializeToString()
    with (
        servers([("hotset", hotset(store))], tmp_path) as (server,),
        asyncio.Runner() as runner,
    ):
        block = dialled(server.grpc)
        call = runner.run(block.__aenter__())

        async def work() -> None:
            await closed_loop(call, islice(repeat(raw), PER), 1)

        runner.run(work())
        timed_async(benchmark, runner, work)
        runner.run(block.__aexit__(None, None, None))
