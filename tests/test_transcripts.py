"""The stories in transcripts/: what was asked of the cache, and what it did.

    budget 10            the ledger; other settings: patience S, loads N, waiting N,
                         idle S
    shares a=1:2:3       floor, quota and ceiling of tenants
    model a 5 [pin] [of T]    a model of 5 bytes, of tenant T
    use a [as x] [by S]  take a lease (x names it), with a deadline in S seconds
    ahead a              bring it in though no request waits for it
    drop x               end it            cancel x     the client goes away
    arrive a             a's load ends     fail a KIND  a's load fails
    free a               a's unload ends   unload a     an operator's unload
    resize N             the gauge's word  tick S       S seconds pass
    drain                close the cache

Below each `----`: what the loader was told and the clients heard, then the cache. Time
is virtual. After a change on purpose: pytest tests/test_transcripts.py --rewrite.
"""

import asyncio
from pathlib import Path

import pytest

from eviction.ledger import Ledger
from eviction.lru import Lru
from loader.errors import ArtifactRefused, DeviceFull, StoreUnreachable
from runtime.cache import Bounds, ModelCache
from runtime.observer import NullObserver
from runtime.tenants import Tenants, parse_tenants
from tests.detloop import DetLoop
from tests.fake_models import FakeLoader, spec_of
from tests.invariants import check

STORIES = sorted((Path(__file__).parent / "transcripts").glob("*.txt"))
KINDS = {
    "refused": lambda: ArtifactRefused("model.safetensors", "its SHA-256 is wrong"),
    "unreachable": lambda: StoreUnreachable("the model store could not be read"),
    "full": lambda: DeviceFull("the device has no memory left for this model"),
    "bug": lambda: ZeroDivisionError("a bug"),
}


class Teller:
    """Carries one story out, line by line."""

    def __init__(self) -> None:
        self.loader = FakeLoader()
        self.loader.held = self.loader.hold_unloads = True
        self.specs = {}
        self.settings = {"budget": 10, "patience": 30, "loads": 4, "waiting": 100,
                         "idle": 0}  # fmt: skip
        self.tenants = Tenants()
        self.cache: ModelCache | None = None
        self.heard: list[str] = []
        self.tasks: dict[str, asyncio.Task] = {}
        self.ends: dict[str, asyncio.Event] = {}

    async def tell(self, line: str) -> None:
        word, *rest = line.split()
        if word in self.settings:
            self.settings[word] = int(rest[0])
            return
        if word == "model":
            tenant = rest[rest.index("of") + 1] if "of" in rest else ""
            self.specs[rest[0]] = spec_of(
                rest[0], int(rest[1]), pin="pin" in rest, tenant=tenant
            )
            return
        if word == "shares":
            self.tenants = Tenants(parse_tenants(rest[0]))
            return
        if self.cache is None:
            self.cache = self._open()
        await getattr(self, f"_{word}")(*rest)
        await self._settle()

    def _open(self) -> ModelCache:
        told = self.settings
        bounds = Bounds(told["loads"], told["waiting"], told["patience"], told["idle"])
        return ModelCache(
            self.loader,
            Lru(),
            Ledger(told["budget"]),
            NullObserver(),
            bounds,
            tenants=self.tenants,
        )

    async def _settle(self) -> None:
        for _ in range(50):
            await asyncio.sleep(0)

    async def _use(self, name: str, *rest: str) -> None:
        told = dict(zip(rest[::2], rest[1::2], strict=True))
        alias = told.get("as", name)
        self.ends[alias] = asyncio.Event()
        self.tasks[alias] = asyncio.create_task(self._client(alias, name, told))

    async def _client(self, alias: str, name: str, told: dict[str, str]) -> None:
        deadline = None
        if "by" in told:
            deadline = asyncio.get_running_loop().time() + float(told["by"])
        try:
            async with self.cache.lease(self.specs[name], deadline) as model:
                assert not model.closed
                self.heard.append(f"{alias} has {name}")
                await self.ends[alias].wait()
                assert not model.closed
        except Exception as error:  # noqa: BLE001 - whatever a client hears is told
            self.heard.append(f"{alias} hears {type(error).__name__}: {error}")

    async def _ahead(self, name: str) -> None:
        self.tasks[f"ahead {name}"] = asyncio.create_task(self._bringing(name))

    async def _bringing(self, name: str) -> None:
        try:
            async with self.cache.lease(self.specs[name], urgent=False):
                pass
        except Exception as error:  # noqa: BLE001 - as above
            self.heard.append(f"ahead of {name}: {type(error).__name__}: {error}")

    async def _drop(self, alias: str) -> None:
        self.ends[alias].set()

    async def _cancel(self, alias: str) -> None:
        self.tasks[alias].cancel()

    async def _arrive(self, name: str) -> None:
        self.loader.loading[name].set_result(None)

    async def _fail(self, name: str, kind: str) -> None:
        self.loader.loading[name].set_exception(KINDS[kind]())

    async def _free(self, name: str) -> None:
        self.loader.unloading[name].set_result(None)

    async def _unload(self, name: str) -> None:
        self.tasks[f"unload {name}"] = asyncio.create_task(self._unloading(name))

    async def _unloading(self, name: str) -> None:
        await self.cache.unload(self.specs[name].key)
        self.heard.append(f"{name} is unloaded")

    async def _resize(self, capacity: str) -> None:
        self.cache.resize(int(capacity))

    async def _tick(self, seconds: str) -> None:
        await asyncio.sleep(float(seconds))

    async def _drain(self) -> None:
        self.tasks["drain"] = asyncio.create_task(self._draining())

    async def _draining(self) -> None:
        await self.cache.aclose()
        self.heard.append("drained")

    def seen(self) -> str:
        """What happened since we looked last, then how the cache stands."""
        lines = self.loader.calls + self.heard
        self.loader.calls, self.heard = [], []
        for life in self.cache.residencies.values():
            nbytes = self.cache.ledger.size(life.spec.key)
            lines.append(
                f"  {life.spec.name} {life.stage.value} {nbytes} leases={life.leases}"
            )
        ledger = self.cache.ledger
        door = f", {len(self.cache.door)} at the door" if self.cache.door else ""
        lines.append(f"  {ledger.held}/{ledger.capacity}{door}")
        return "\n".join(lines)

    async def close(self) -> None:
        for task in self.tasks.values():
            task.cancel()
        self.loader.hold_unloads = False
        for gate in self.loader.unloading.values():
            if not gate.done():
                gate.set_result(None)
        await self.cache.aclose()
        await asyncio.gather(*self.tasks.values(), return_exceptions=True)


async def retell(text: str) -> str:
    """The story with what really happened."""
    teller, told = Teller(), []
    try:
        for block in text.strip().split("\n\n"):
            said = block.split("\n----", 1)[0]
            told.append(said)
            asked = [line for line in said.splitlines() if not line.startswith("#")]
            for line in asked:
                await teller.tell(line)
            if "----" in block:
                check(teller.cache)
                told[-1] += f"\n----\n{teller.seen()}"
    finally:
        await teller.close()
    return "\n\n".join(told) + "\n"


def run(text: str) -> str:
    loop = DetLoop(0, lambda: None, shuffled=False)
    asyncio.set_event_loop(loop)
    try:
        return loop.run_until_complete(retell(text))
    finally:
        asyncio.set_event_loop(None)
        loop.close()


@pytest.mark.parametrize("story", STORIES, ids=lambda path: path.stem)
def test_story(story: Path, request: pytest.FixtureRequest) -> None:
    text = story.read_text()
    told = run(text)
    if request.config.getoption("--rewrite"):
        story.write_text(told)
    else:
        assert told == text
