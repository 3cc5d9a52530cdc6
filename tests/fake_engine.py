"""An Engine without a cache or a store: real torch functions behind the real seam.

Owns: what tests of the wire and of other services need to see and to steer. It checks
requests with the real `conform`, so refusals are the real ones.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from loader.errors import ModelNotFound
from loader.manifest import FileRef, ModelSpec, TensorSpec
from runtime.conformance import conform
from runtime.datatypes import TORCH
from runtime.engine import (
    Answer,
    Duration,
    IndexEntry,
    ModelStatistics,
    Request,
    Snapshot,
)
from runtime.errors import DeadlinePassed, Draining
from runtime.explanation import Event, Explanation, Ranked

_FILE = FileRef("weights", 1024, "0" * 64)


@dataclass(frozen=True)
class FakeModel:
    """A manifest and what it does."""

    spec: ModelSpec
    run: Callable[..., tuple[torch.Tensor, ...]]


def spec_of(
    name: str,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    max_batch_size: int = 8,
    version: str = "1",
) -> ModelSpec:
    """A manifest with files that nobody will read."""
    return ModelSpec(
        name=name,
        version=version,
        graph=_FILE,
        weights=_FILE,
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        max_batch_size=max_batch_size,
    )


def linear(name: str = "linear", version: str = "1") -> FakeModel:
    """x FP32[-1,64] -> y FP32[-1,10]: a softmax over fixed weights."""
    weight = torch.linspace(-1, 1, 640).reshape(10, 64)
    return FakeModel(
        spec_of(
            name,
            [TensorSpec("x", "FP32", (-1, 64))],
            [TensorSpec("y", "FP32", (-1, 10))],
            version=version,
        ),
        lambda x: (torch.softmax(torch.nn.functional.linear(x, weight), -1),),
    )


def simple() -> FakeModel:
    """The model of Triton's examples: INPUT0 + INPUT1 and INPUT0 - INPUT1."""
    return FakeModel(
        spec_of(
            "simple",
            [TensorSpec(f"INPUT{i}", "INT32", (-1, 16)) for i in (0, 1)],
            [TensorSpec(f"OUTPUT{i}", "INT32", (-1, 16)) for i in (0, 1)],
        ),
        lambda a, b: (a + b, a - b),
    )


def identity(datatype: str) -> FakeModel:
    """x -> y of one datatype and any size, without a batch dimension."""
    return FakeModel(
        spec_of(
            f"identity_{datatype.lower()}",
            [TensorSpec("x", datatype, (-1,))],
            [TensorSpec("y", datatype, (-1,))],
            max_batch_size=0,
        ),
        lambda x: (x.clone(),),
    )


def embedding() -> FakeModel:
    """ids INT64[-1,-1] in 0..99 -> v FP32[-1,4]: an index out of range is refused."""
    table = torch.arange(400, dtype=torch.float32).reshape(100, 4)
    return FakeModel(
        spec_of(
            "embedding",
            [TensorSpec("ids", "INT64", (-1, -1), low=0, high=99)],
            [TensorSpec("v", "FP32", (-1, 4))],
        ),
        lambda ids: (table[ids].mean(1),),
    )


def zoo() -> list[FakeModel]:
    """One of each."""
    return [
        linear(),
        simple(),
        embedding(),
        *(identity(datatype) for datatype in TORCH),
    ]


class FakeEngine:
    """Satisfies runtime.engine.Engine.

    `errors[model]`: raised by whatever touches the model. `hold`: while clear, predicts
    of any model wait for it; `entered` counts those that came, `cancelled` those whose
    caller left.
    """

    def __init__(self, models: Sequence[FakeModel] | None = None) -> None:
        self.models: Mapping[str, FakeModel] = {
            model.spec.name: model for model in (zoo() if models is None else models)
        }
        self.ready = True
        self.errors: dict[str, Exception] = {}
        self.hold = asyncio.Event()
        self.hold.set()
        self.entered = 0
        self.cancelled = 0
        self.drained = False
        self.requests: list[Request] = []
        self.load_deadlines: list[float | None] = []
        self.resident: dict[str, str] = {}
        self._running: set[asyncio.Task[object]] = set()
        self._changed = asyncio.Event()

    @property
    def waiting(self) -> int:
        """Predicts inside right now."""
        return len(self._running)

    async def until(self, happened: Callable[[], bool]) -> None:
        """Return once `happened()`; asked again whenever a predict comes or leaves."""
        while not happened():
            await self._changed.wait()
            self._changed.clear()

    def look_again(self) -> None:
        """Have `until` ask once more: something outside has changed."""
        self._changed.set()

    def _find(self, model: str, version: str = "") -> FakeModel:
        if model in self.errors:
            raise self.errors[model]
        found = self.models.get(model)
        if found is None:
            raise ModelNotFound(model)
        if version not in ("", found.spec.version):
            raise ModelNotFound(model, version)
        return found

    async def predict(self, request: Request) -> Answer:
        if not self.ready:
            raise Draining("the server is going away")
        self.entered += 1
        self._changed.set()
        self.requests.append(request)
        model = self._find(request.model, request.version)
        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)
        try:
            if not self.hold.is_set():
                await self._held(request.deadline)
        finally:
            self._running.discard(task)
            self._changed.set()
        tensors = conform(request, model.spec)
        with torch.inference_mode():
            outputs = model.run(*tensors)
        temperature = "hit" if request.model in self.resident else "miss"
        self.resident[request.model] = model.spec.version
        named = zip(model.spec.outputs, outputs, strict=True)
        return Answer(
            model.spec.name,
            model.spec.version,
            [
                (spec.name, tensor)
                for spec, tensor in named
                if not request.outputs or spec.name in request.outputs
            ],
            temperature,
        )

    async def _held(self, deadline: float | None) -> None:
        try:
            async with asyncio.timeout_at(deadline):
                await self.hold.wait()
        except TimeoutError:
            raise DeadlinePassed("the deadline passed while waiting") from None
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    async def describe(self, model: str, version: str = "") -> ModelSpec:
        return self._find(model, version).spec

    async def versions(self, model: str) -> Sequence[str]:
        return [self._find(model).spec.version]

    async def servable(self, model: str, version: str = "") -> bool:
        found = self.models.get(model)
        return (
            found is not None
            and model not in self.errors
            and version in ("", found.spec.version)
        )

    async def load(
        self, model: str, version: str = "", deadline: float | None = None
    ) -> None:
        self.load_deadlines.append(deadline)
        self.resident[model] = self._find(model, version).spec.version

    async def unload(self, model: str, version: str = "") -> None:
        self.resident.pop(model, None)

    async def index(self, ready_only: bool = False) -> Sequence[IndexEntry]:
        entries = [
            IndexEntry(name, version, "READY")
            for name, version in self.resident.items()
        ]
        if not ready_only:
            entries += [
                IndexEntry(name, "1", "UNAVAILABLE", str(error))
                for name, error in self.errors.items()
            ]
        return entries

    async def statistics(
        self, model: str = "", version: str = ""
    ) -> Sequence[ModelStatistics]:
        counted = []
        for name, known in self.resident.items():
            uses = [r for r in self.requests if r.model == name]
            if model not in ("", name) or version not in ("", known):
                continue
            spent = Duration(len(uses), 0.001 * len(uses))
            counted.append(
                ModelStatistics(
                    name=name,
                    version=known,
                    requests=len(uses),
                    executions=len(uses),
                    last_use=1_700_000_000.5,
                    success=spent,
                    fail=Duration(),
                    queue=spent,
                    compute=spent,
                    hits=spent,
                    misses=Duration(1, 0.25),
                    bytes_by_tier={"cuda:1": 4096, "host": 512, "disk": 99},
                )
            )
        return counted

    async def snapshot(self) -> Snapshot:
        return Snapshot(
            device="cpu",
            policy="none",
            capacity=1,
            held=0,
            peak_held=0,
            measured=None,
            waiting=0,
            uptime_s=0.0,
            requests={"hit": 0, "wait": 0, "miss": 0},
            loads=0,
            evictions=0,
            failures=0,
            residents=(),
        )

    async def explain(self, model: str, version: str = "") -> Explanation:
        spec = self._find(model, version).spec
        ranked = Ranked("other", "1", 10, 1e-9, 0.25, 3.0)
        event = Event(
            2.5,
            "left",
            model,
            spec.version,
            "room",
            10,
            "other:1",
            1e-9,
            0,
            3,
            0.5,
            0.25,
        )
        return Explanation(
            model=spec.name,
            version=spec.version,
            state="UNAVAILABLE",
            because="it left 2.5 s ago to make room for other:1",
            policy="none",
            nbytes=10,
            pinned=False,
            priority=0,
            tenant="",
            leases=0,
            uses=0,
            reload_s=0.25,
            density=None,
            rank=None,
            price=2e-9,
            spiral=False,
            would_push_out=[ranked],
            short=0,
            ranking=[ranked],
            history=[event],
        )

    async def drain(self) -> None:
        self.ready = False
        while self._running:
            await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)
        self.drained = True
