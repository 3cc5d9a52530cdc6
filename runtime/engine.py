"""The seam: everything a service may ask of hotset.

Owns: the vocabulary between the services (gRPC, REST, the SPI, the command line) and
whatever serves them. Must not: know gRPC, HTTP or protobuf, nor how a model is loaded.
Services hold an `Engine` and nothing else, so that the engine can move to a process
of its own without a service noticing.

Time: `deadline` is on the event loop's clock (`loop.time()`), None when the caller
set none. Errors: only `loader.errors.LoadFailed` and `runtime.errors.Refused` and
their kin; anything else is a bug and becomes INTERNAL with an id.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from loader.manifest import ModelSpec
from loader.tier import Tiers
from runtime.explanation import Explanation

if TYPE_CHECKING:  # named only: `hotset top` reads a Snapshot and needs no torch
    import torch

Temperature = Literal["hit", "wait", "miss"]
"""How a request met its model: resident; loading for somebody else; loaded for it."""

State = Literal["READY", "LOADING", "UNLOADING", "UNAVAILABLE"]
"""The Open Inference Protocol's repository states."""


CodeState = Literal["eager", "compiling", "compiled", "recorded", "refused", "retired"]
"""How a graph is run: "refused" and "retired" ones run eagerly, for good."""


# Requests and answers are not frozen: freezing would double what making one costs, and
# one of each is made for every predict. Nobody writes to them.


@dataclass(slots=True)
class Request:
    """One predict. `version` empty: the latest. `outputs` empty: all of them.

    `inputs`: name -> CPU tensor of the dtype and shape the client sent; the engine
    checks them against the model. What came as bytes stays so until somebody asks for a
    tensor (runtime/contents.py Pieces; outputs: Parts).
    """

    model: str
    inputs: Mapping[str, "torch.Tensor"]
    version: str = ""
    outputs: tuple[str, ...] = ()
    id: str = ""
    deadline: float | None = None


@dataclass(slots=True)
class Answer:
    """What a predict gives: CPU tensors in the model's own order of outputs."""

    model: str
    version: str
    outputs: Sequence[tuple[str, "torch.Tensor"]]
    temperature: Temperature


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """One line of the repository index."""

    name: str
    version: str
    state: State
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Duration:
    """`count` events that took `seconds` together."""

    count: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class ModelStatistics:
    """What ModelStatistics of the Triton dialect tells of one model version.

    `requests` counts answered requests, `executions` forward passes (a batch is one).
    `last_use`: seconds since the epoch, 0.0 for never. `bytes_by_tier`: e.g.
    {"cuda:0": 1048576}.
    """

    name: str
    version: str
    requests: int
    executions: int
    last_use: float
    success: Duration
    fail: Duration
    queue: Duration
    compute: Duration
    hits: Duration
    misses: Duration
    bytes_by_tier: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Resident:
    """One model as the cache sees it now. Ages in seconds."""

    name: str
    version: str
    state: State
    nbytes: int
    tier: str
    leases: int
    uses: int
    idle_s: float
    pinned: bool
    reason: str = ""
    below: Mapping[str, int] = field(default_factory=dict)
    """Its bytes in the tiers below the device: {"host": 1048576}."""
    code: str = ""
    """How its graph is run, if somebody tried to compile it."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A model that is not on the device, and whose bytes a tier below it has."""

    name: str
    version: str
    below: Mapping[str, int]


SHOWN = 12
"""Digits of a graph's digest that people see."""


@dataclass(frozen=True, slots=True)
class CompiledGraph:
    """One graph that was compiled or recorded, or why it was not (--compile,
    --cuda-graphs).

    `speedup`: eager's time by the code's, in its trial. `seconds`: what that took.
    `calls`: answered by the code, or played, about. `declined`: run eagerly all the
    same.
    """

    digest: str
    state: CodeState
    reason: str
    speedup: float
    cached: bool
    seconds: float
    calls: int
    declined: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The whole cache at one moment. `measured`: device bytes in use as the gauge read
    them last (all processes), None where there is no gauge."""

    device: str
    policy: str
    capacity: int
    held: int
    peak_held: int
    measured: int | None
    waiting: int
    uptime_s: float
    requests: Mapping[Temperature, int]
    loads: int
    evictions: int
    failures: int
    residents: Sequence[Resident]
    gauge_up: bool = True
    """False while `measured` is an estimate."""
    tiers: Tiers = field(default_factory=Tiers)
    """The arena on the device, and the tiers below it."""
    price: float = 0.0
    """Of a byte, in seconds of waiting, by the last eviction; 0 while all fits."""
    spiral: bool = False
    """True while models are wanted back as soon as they leave."""
    relapses: int = 0
    """Loads of models that had left less than their own load time before."""
    deferred: int = 0
    """Requests told to come again later, to break a spiral."""
    kept: Sequence[Kept] = field(default_factory=list)
    """Who is one tier away; some of them, where there are very many."""
    compiled: Sequence[CompiledGraph] = field(default_factory=list)
    """Graphs that were compiled, or could not be."""
    onednn_from: int = 0
    """Multiplications from which a linear layer runs in oneDNN (--kernels); 0: none."""


class Engine(Protocol):
    """What serves. One implementation in process (runtime/local.py)."""

    @property
    def ready(self) -> bool:
        """True from the end of start-up until draining begins. Asked often, by probes
        too: an engine elsewhere tells it before it is asked."""
        ...

    async def predict(self, request: Request) -> Answer:
        """Lease the model (loading it if need be), run it, give the outputs."""
        ...

    async def describe(self, model: str, version: str = "") -> ModelSpec:
        """The model's manifest, from the store if not known yet; loads nothing."""
        ...

    async def versions(self, model: str) -> Sequence[str]:
        """Versions of a model in the store, ascending; ModelNotFound if none."""
        ...

    async def servable(self, model: str, version: str = "") -> bool:
        """True if a predict would be tried: resident, or in the store, not failed."""
        ...

    async def load(
        self, model: str, version: str = "", deadline: float | None = None
    ) -> None:
        """Make resident now; returns when it is."""
        ...

    async def unload(self, model: str, version: str = "") -> None:
        """Make absent; returns when its bytes are free. Unknown models are a no-op."""
        ...

    async def index(self, ready_only: bool = False) -> Sequence[IndexEntry]:
        """Models this server has met (never a listing of the whole store)."""
        ...

    async def statistics(
        self, model: str = "", version: str = ""
    ) -> Sequence[ModelStatistics]:
        """Counters of one model, or of all met (empty name)."""
        ...

    async def snapshot(self) -> Snapshot:
        """What is resident, and how it got there."""
        ...

    async def explain(self, model: str, version: str = "") -> Explanation:
        """Why it is here or not, who would leave for it; loads and evicts nothing."""
        ...

    async def drain(self) -> None:
        """Refuse new work, let leases end, cancel loads, free every byte."""
        ...
