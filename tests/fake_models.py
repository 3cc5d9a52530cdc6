"""Models without tensors, and a loader whose every step the test decides.

`FakeLoader` satisfies `runtime.cache.Loading`. It keeps its own books, so that a test
can ask whether what the cache believes is what was done: `resident` are the models it
brought in and has not taken out; `peak` is the most bytes it ever held at once.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

from loader.manifest import FileRef, ModelSpec, TensorSpec


def spec_of(name: str, nbytes: int, pin: bool = False, **more) -> ModelSpec:
    digest = (name.encode().hex() * 64)[:64]
    return ModelSpec(
        name=name,
        version=more.pop("version", "1"),
        graph=FileRef("graph.json", 10, "0" * 64),
        weights=FileRef("model.safetensors", nbytes, more.pop("sha256", digest)),
        inputs=(TensorSpec("x", "FP32", (-1, 4)),),
        outputs=(TensorSpec("y", "FP32", (-1, 4)),),
        max_batch_size=8,
        pin=pin,
        **more,
    )


@dataclass(eq=False)
class FakeModel:
    spec: ModelSpec
    nbytes: int
    phases: Mapping[str, float] = field(default_factory=dict)
    closed: bool = False


class FakeLoader:
    """Loads at once, or when told (`held`), or not at all (`broken`)."""

    def __init__(self) -> None:
        self.held = False
        self.broken: dict[str, list[Exception]] = {}
        self.shrink = 0
        self.calls: list[str] = []
        self.resident: dict[str, FakeModel] = {}
        self.loading: dict[str, asyncio.Future[None]] = {}
        self.unloading: dict[str, asyncio.Future[None]] = {}
        self.hold_unloads = False
        self.bytes = 0
        self.peak = 0

    def size(self, spec: ModelSpec) -> int:
        return spec.weights.size

    async def load(self, spec: ModelSpec) -> FakeModel:
        self.calls.append(f"load {spec.name}")
        assert spec.key not in self.resident, f"{spec.key} is loaded twice"
        nbytes = spec.weights.size
        self._take(nbytes)
        try:
            if self.held:
                gate = asyncio.get_running_loop().create_future()
                self.loading[spec.name] = gate
                try:
                    await gate
                finally:
                    del self.loading[spec.name]
            if self.broken.get(spec.name):
                raise self.broken[spec.name].pop(0)
        except BaseException as error:
            self.bytes -= nbytes
            cancelled = isinstance(error, asyncio.CancelledError)
            self.calls.append(f"{'cancelled' if cancelled else 'failed'} {spec.name}")
            raise
        self.bytes -= self.shrink
        model = FakeModel(spec, nbytes - self.shrink)
        self.resident[spec.key] = model
        return model

    async def unload(self, model: FakeModel) -> None:
        assert not model.closed, f"{model.spec.key} is unloaded twice"
        model.closed = True
        if self.hold_unloads:
            gate = asyncio.get_running_loop().create_future()
            self.unloading[model.spec.name] = gate
            await gate
            del self.unloading[model.spec.name]
        self.calls.append(f"unload {model.spec.name}")
        del self.resident[model.spec.key]
        self.bytes -= model.nbytes

    def _take(self, nbytes: int) -> None:
        self.bytes += nbytes
        self.peak = max(self.peak, self.bytes)
