"""The cache under seeded disorder: every seed another order of events.

Models come, fail, are cancelled, evicted, unloaded; the budget shrinks and grows;
clients leave. After every single step of the event loop all invariants must hold, and
at the end every caller has its answer and not a byte is held.
"""

import asyncio

import pytest

from eviction.ledger import Ledger
from eviction.policies import POLICIES
from loader.errors import ArtifactRefused, DeviceFull, StoreUnreachable
from runtime.cache import Bounds, ModelCache
from runtime.errors import Refused
from runtime.observer import NullObserver
from tests.detloop import DetLoop
from tests.fake_models import FakeLoader, spec_of
from tests.invariants import check, check_empty

SEEDS = 400
BLOCK = 40


class RandomLoader(FakeLoader):
    """Each step takes a random time; one in eight loads fails in one of four ways."""

    def __init__(self, loop: DetLoop, trouble: float) -> None:
        super().__init__()
        self._random = loop.random
        self._trouble = trouble

    async def load(self, spec):
        faults = [
            StoreUnreachable("the model store could not be read"),
            ArtifactRefused("model.safetensors", "digest"),
            DeviceFull("full"),
            ValueError("a bug"),
        ]
        if self._random.random() < self._trouble:
            self.broken[spec.name] = [self._random.choice(faults)]
        self.held = True
        loop = asyncio.get_running_loop()
        loop.call_later(self._random.expovariate(2.0), self._let_go, spec.name)
        return await super().load(spec)

    async def unload(self, model):
        await asyncio.sleep(self._random.choice([0, 0, 0.2]))
        await super().unload(model)

    def _let_go(self, name: str) -> None:
        gate = self.loading.get(name)
        if gate is not None and not gate.done():
            gate.set_result(None)


async def client(cache: ModelCache, specs, random, counts) -> None:
    loop = asyncio.get_running_loop()
    for _ in range(6):
        spec = specs[min(int(random.paretovariate(1.0)) - 1, len(specs) - 1)]
        deadline = loop.time() + random.random() if random.random() < 0.3 else None
        try:
            async with cache.lease(spec, deadline, random.random() < 0.9) as model:
                assert not model.closed
                await asyncio.sleep(random.choice([0, 0.01, 0.3]))
                assert not model.closed, "freed in use"
                counts["ok"] += 1
        except (Refused, StoreUnreachable, ArtifactRefused, DeviceFull, ValueError):
            counts["refused"] += 1
        await asyncio.sleep(random.choice([0, 0, 0.1, 1.0]))


async def operator(cache: ModelCache, specs, random, capacity: int) -> None:
    for _ in range(5):
        await asyncio.sleep(random.random() * 2)
        await cache.unload(random.choice(specs).key)
        cache.resize(int(capacity * random.choice([0.3, 0.7, 1.0])))
    cache.resize(capacity)


async def story(loop: DetLoop, holder: list[ModelCache], policy: str) -> dict[str, int]:
    random = loop.random
    capacity = random.choice([10, 20, 50])
    specs = [
        spec_of(f"m{i}", random.randint(1, 12), pin=(i == 3 and random.random() < 0.3))
        for i in range(random.randint(3, 12))
    ]
    loader = RandomLoader(loop, trouble=random.choice([0.0, 0.15, 0.5]))
    cache = ModelCache(
        loader,
        POLICIES[policy](),
        Ledger(capacity),
        NullObserver(),
        Bounds(random.choice([1, 2, 4]), max_waiting=12, patience=5.0),
    )
    holder.append(cache)
    counts = {"ok": 0, "refused": 0}
    clients = [
        loop.create_task(client(cache, specs, random, counts))
        for _ in range(random.randint(2, 16))
    ]
    clients.append(loop.create_task(operator(cache, specs, random, capacity)))
    victims = [task for task in clients if random.random() < 0.5]
    # A cancellation may strike between any two steps, so that no window stays unseen.
    loop.ambush = lambda: random.choice(victims).cancel() if victims else None
    loop.ambush_odds = random.choice([0.0, 0.001, 0.02])
    if random.random() < 0.3:  # go down in the midst of it
        await asyncio.sleep(random.random() * 3)
    else:
        await asyncio.wait(clients)
    await cache.aclose()
    results = await asyncio.gather(*clients, return_exceptions=True)
    for task, ended in zip(clients, results, strict=True):
        cancelled = isinstance(ended, asyncio.CancelledError) and task in victims
        assert ended is None or cancelled, ended
    check_empty(cache)
    assert not loader.resident
    assert loader.bytes == 0
    assert loader.peak <= capacity, "over budget"
    return counts


def run(seed: int, policy: str) -> dict[str, int]:
    holder: list[ModelCache] = []
    loop = DetLoop(seed, lambda: [check(cache) for cache in holder])
    asyncio.set_event_loop(loop)
    troubles: list[dict] = []
    loop.set_exception_handler(lambda _, context: troubles.append(context))
    try:
        counts = loop.run_until_complete(story(loop, holder, policy))
        assert not troubles, troubles
        return counts
    finally:
        asyncio.set_event_loop(None)
        loop.close()


@pytest.mark.stress
@pytest.mark.timeout(120)
@pytest.mark.parametrize("policy", ["lru", "gdsf", "tournament"])
@pytest.mark.parametrize("block", range(0, SEEDS // 2, BLOCK))
def test_no_seed_breaks_an_invariant(block: int, policy: str) -> None:
    served = 0
    for seed in range(block, block + BLOCK):
        try:
            served += run(seed, policy)["ok"]
        except BaseException as error:
            error.add_note(f"seed {seed}, policy {policy}")
            raise
    assert served > BLOCK, "a stress that serves nobody proves nothing"
