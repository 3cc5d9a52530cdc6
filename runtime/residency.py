"""One model's life, as a table.

              loaded            dismissed            unloaded
  LOADING ------------> READY -----------> LEAVING ----------> GONE
   |  `----- unwanted (its load is cancelled) ---^              ^
   `---- failed ----> FAILED ---- retry_at has passed ----------'

Rule 1: every change of state goes through `Residency.move`, and MOVES is the whole
truth about what may follow what. Rule 2: leases may be taken in LOADING and READY
only. In LEAVING the leases taken before (an operator's unload may meet some) run out
first; then the bytes go.

Owns: the states and what belongs to one life. Must not: wait, load, or know the cache.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Generic, Protocol, TypeVar

from loader.manifest import ModelSpec
from loader.turns import Errand


class Stage(Enum):
    """Where a residency is in its life."""

    LOADING = "LOADING"
    READY = "READY"
    LEAVING = "LEAVING"
    FAILED = "FAILED"
    GONE = "GONE"


MOVES: Mapping[Stage, frozenset[Stage]] = {
    Stage.LOADING: frozenset({Stage.READY, Stage.FAILED, Stage.LEAVING}),
    Stage.READY: frozenset({Stage.LEAVING}),
    Stage.LEAVING: frozenset({Stage.GONE}),
    Stage.FAILED: frozenset({Stage.GONE}),
    Stage.GONE: frozenset(),
}


class Loaded(Protocol):
    """What the cache needs to know of a model in memory."""

    @property
    def nbytes(self) -> int:
        """Device bytes it holds, exactly."""
        ...

    @property
    def phases(self) -> Mapping[str, float]:
        """Seconds by phase of its load (fetch, verify, copy)."""
        ...


M = TypeVar("M", bound=Loaded)


class Loading(Protocol[M]):
    """What brings models in and takes them out (loader.load.Loader; fakes in tests)."""

    def size(self, spec: ModelSpec) -> int:
        """Upper bound of the device bytes, from the manifest alone: no I/O."""
        ...

    async def load(self, spec: ModelSpec) -> M:
        """Bring it in. When it raises, CancelledError too, nothing is held any more."""
        ...

    async def unload(self, model: M) -> None:
        """Take it out; returns when its bytes are free. Never raises."""
        ...


@dataclass(eq=False, slots=True)
class Residency(Generic[M]):
    """One life of one model: from the wish to load it until its bytes are free.

    `leases` counts the waiters too (trap 1: a model that just arrived must not be
    evicted before those who waited for it have used it).
    """

    spec: ModelSpec
    since: float
    """When this life began; from READY on, when it became ready. Loop clock."""
    arrival: asyncio.Future[M]
    """Set once, when the load ends: the model, or why there is none."""
    gone: asyncio.Future[None]
    """Set once, when this life is over and its bytes are free."""
    stage: Stage = Stage.LOADING
    model: M | None = None
    leases: int = 0
    uses: int = 0
    last_use: float = 0.0
    begun: float = 0.0
    """When its load was let in: what it waited for room is no cost of loading it."""
    load_s: float = 0.0
    retry_at: float = 0.0
    failure: Exception | None = None
    task: asyncio.Task[M] | None = None
    """The load under way; None once it has ended, however."""
    errand: Errand = field(default_factory=Errand)
    """Not urgent while no request waits for its load."""
    _last: asyncio.Event | None = None
    """Made when somebody waits for the last lease to end, and set when it does."""
    key: str = field(init=False)
    """The spec's: every plan asks every resident for it."""

    def __post_init__(self) -> None:
        self.key = self.spec.key

    def move(self, to: Stage) -> None:
        """Change state; a move that is not in the table is a bug, and says so."""
        if to not in MOVES[self.stage]:
            raise AssertionError(f"{self!r} may not become {to.value}. This is a bug.")
        self.stage = to
        if to is Stage.GONE:
            self.gone.set_result(None)

    def take(self) -> None:
        """Count one more lease (or waiter)."""
        self.leases += 1

    def give_back(self) -> None:
        """Count one lease (or waiter) less."""
        self.leases -= 1
        if self.leases < 0:
            raise AssertionError(f"{self!r} was given back twice. This is a bug.")
        if self.leases == 0 and self._last is not None:
            self._last.set()

    async def emptied(self) -> None:
        """Until nobody holds a lease. Nobody may take one meanwhile (rule 2)."""
        if self.leases:
            self._last = asyncio.Event()
            await self._last.wait()

    def __repr__(self) -> str:
        held = f" {self.model.nbytes} bytes" if self.model is not None else ""
        return f"{self.spec.key} {self.stage.value} leases={self.leases}{held}"
