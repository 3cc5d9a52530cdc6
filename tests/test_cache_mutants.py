"""Would the stress notice? Each mutant is the cache with one known bug put back.

Every line is a bug somebody's server had, or one met while this cache was written; the
stress must catch each of them within SEEDS seeds. A line that no longer applies to the
source fails, so the list stays true.
"""

import gc
import importlib
import sys
import types
from pathlib import Path

import pytest

from eviction.policies import DEFAULT
from tests import test_cache_stress

SEEDS = 120
ROOT = Path(__file__).parent.parent
MODULES = ["runtime.residency", "runtime.door", "runtime.failures", "runtime.lease",
           "runtime.room", "runtime.arrivals", "runtime.departures",
           "runtime.cache"]  # fmt: skip

MUTANTS = {
    "a waiter is no lease": (
        "runtime.lease",
        "            await self._until(residency.arrival, residency)\n",
        "            residency.give_back()\n"
        "            await self._until(residency.arrival, residency)\n"
        "            residency.take()\n",
    ),
    "models in use may leave": (
        "runtime.room",
        "if life.stage is Stage.READY and not life.leases and not life.spec.pin",
        "if life.stage is Stage.READY and not life.spec.pin",
    ),
    "an unload does not wait for leases": (
        "runtime.departures",
        "        await residency.emptied()\n",
        "",
    ),
    "bytes are free before they are": (
        "runtime.departures",
        "        await self._loader.unload(model)\n        self._cache.room.leaving",
        "        self._cache.ledger.hold(key, 0)\n"
        "        self._cache.reconsider()\n"
        "        await self._loader.unload(model)\n        self._cache.room.leaving",
    ),
    "a failed load keeps its booking": (
        "runtime.arrivals",
        "            if spec.key in self._cache.ledger:\n"
        "                self._cache.ledger.release(spec.key)\n",
        "",
    ),
    "a load nobody wants goes on": (
        "runtime.arrivals",
        "        residency.task.cancel()\n",
        "        pass\n",
    ),
    "nobody is told that room came": (
        "runtime.departures",
        "        self._cache.chronicle.gone(residency, nbytes, reason)\n"
        "        self._cache.reconsider()\n",
        "        self._cache.chronicle.gone(residency, nbytes, reason)\n",
    ),
    "a cancelled load keeps its slot": (
        "runtime.door",
        "            else:\n                self.leave(want)\n",
        "",
    ),
    "the door books nothing": (
        "runtime.door",
        "        self._ledger.hold(want.key, want.need)\n",
        "",
    ),
    "no bound on loads at once": (
        "runtime.door",
        "while self._line and self.loads < self._slots:",
        "while self._line:",
    ),
    "a deadline kills the load for all": (
        "runtime.lease",
        "        done, _ = await asyncio.wait((future,), timeout=left)\n",
        "        try:\n"
        "            return await asyncio.wait_for(future, left)\n"
        "        except TimeoutError:\n"
        "            done = ()\n",
    ),
    "who waits for a leaving model takes it": (
        "runtime.lease",
        "if residency.stage is not Stage.LEAVING:",
        "if True:",
    ),
    "a drain forgets the loads": (
        "runtime.cache",
        "            if residency.stage is Stage.LOADING:\n"
        "                why = Draining",
        "            if False:\n                why = Draining",
    ),
    "a second load of the same model": (
        "runtime.lease",
        "                if residency is None:\n",
        "                if residency is None or residency.stage is Stage.LOADING:\n",
    ),
    "a failure leaves its waiters waiting": (
        "runtime.arrivals",
        "            residency.arrival.set_exception(error)\n\n",
        "\n",
    ),
}


@pytest.fixture
def restored():
    kept = {name: sys.modules[name] for name in MODULES}
    yield
    sys.modules.update(kept)


def rebuild(mutant: str) -> types.ModuleType:
    """The cache's modules anew, one of them changed."""
    target, old, new = MUTANTS[mutant]
    for name in MODULES:
        path = ROOT / (name.replace(".", "/") + ".py")
        source = path.read_text()
        if name == target:
            assert source.count(old) == 1, f"'{mutant}' does not apply any more"
            source = source.replace(old, new)
        module = types.ModuleType(name)
        module.__file__ = str(path)
        sys.modules[name] = module
        exec(compile(source, f"{name} ({mutant})", "exec"), module.__dict__)
    return sys.modules["runtime.cache"]


@pytest.mark.stress
@pytest.mark.timeout(120)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_stress_catches(mutant: str, restored, monkeypatch) -> None:
    cache = rebuild(mutant)
    monkeypatch.setattr(test_cache_stress, "ModelCache", cache.ModelCache)
    monkeypatch.setattr(test_cache_stress, "Bounds", cache.Bounds)
    invariants = importlib.import_module("tests.invariants")
    monkeypatch.setattr(invariants, "Stage", sys.modules["runtime.residency"].Stage)
    caught = any(noticed(seed) for seed in range(SEEDS))
    gc.collect()  # what a broken run left half done complains here, where it is ignored
    assert caught, f"{SEEDS} seeds and nobody noticed that {mutant}"


def noticed(seed: int) -> bool:
    try:
        test_cache_stress.run(seed, DEFAULT)
    except BaseException:  # noqa: BLE001 - Deadlock and AssertionError alike
        return True
    return False
