"""The compiler: the costliest graph first, one at a time, and eager whatever fails."""

import asyncio
import contextlib
import json
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch

from loader.code_cache import CodeCache
from loader.compile_job import Result, read_inputs, read_onednn_from, read_weights
from loader.compiled import Term, Terms
from loader.errors import StoreUnreachable
from loader.graph import read_graph
from loader.manifest import FileRef, ModelSpec, TensorSpec
from runtime.compiler import Compiler

CPU = torch.device("cpu")
TERMS = Terms((Term(torch.float32, ("s0", 2)),), {"s0": (1, 8)}, 1)
X = torch.ones(1, 2)
W = torch.tensor([[2.0, 3.0]])


def _node(name: str, op: str, *args: object) -> dict:
    return {"name": name, "op": op, "args": args}


def graph_text(op: str = "aten.relu.default") -> bytes:
    """y = op(x * w): each op another graph."""
    nodes = [
        _node("a", "aten.mul.Tensor", {"input": "x"}, {"weight": "w"}),
        _node("b", op, {"node": "a"}),
    ]
    document = {
        "format": 1,
        "weights": [{"name": "w", "dtype": "float32", "shape": [1, 2]}],
        "inputs": ["x"],
        "nodes": nodes,
        "outputs": [{"name": "y", "value": {"node": "b"}}],
    }
    return json.dumps(document).encode()


def model_of(text: bytes, weights_size: int = 8) -> SimpleNamespace:
    graph = read_graph(text, CPU)
    spec = ModelSpec(
        name=graph.digest[:6],
        version="1",
        graph=FileRef("graph.json", len(text), graph.digest),
        weights=FileRef("model.safetensors", weights_size, "0" * 64),
        inputs=(TensorSpec("x", "FP32", (-1, 2)),),
        outputs=(TensorSpec("y", "FP32", (-1, 2)),),
        max_batch_size=8,
    )
    return SimpleNamespace(graph=graph, spec=spec, weights=(W,), text=text)


class FakeCode:
    """Answers 7; fails when told to."""

    error: Exception | None = None

    def held(self, tensors):
        return self.freed(tensors)

    def freed(self, tensors):
        if self.error is not None:
            raise self.error
        return (torch.full((1, 2), 7.0),)


class World:
    """A compiler, the models it is told of, and a worker that waits to be let go."""

    def __init__(self, folder, executor) -> None:
        self.cache = CodeCache(folder)
        self.code = FakeCode()
        self.go, self.begun = asyncio.Event(), asyncio.Event()
        self.asked: list[str] = []
        self.seen: list[object] = []
        self.reason = ""
        self.leased = 0
        self.models: dict[str, SimpleNamespace] = {}
        self.unreachable = False
        self.running = 0
        self.compiler = Compiler(
            self.cache,
            executor,
            self._text,
            self._lease,
            after=1.0,
            lanes=2,
            onednn_from=1 << 20,
            worker=self._work,
            opened=lambda path, weights, terms, at_once: self.code,
        )

    def model(self, op: str = "aten.relu.default", size: int = 8) -> SimpleNamespace:
        made = model_of(graph_text(op), size)
        self.models[made.spec.name] = made
        return made

    async def _text(self, spec):
        if self.unreachable:
            raise StoreUnreachable("the store did not answer")
        return self.models[spec.name].text

    @contextlib.asynccontextmanager
    async def _lease(self, spec, until):
        self.leased += 1
        try:
            yield self.models[spec.name]
        finally:
            self.leased -= 1

    async def _work(self, folder, cache):
        assert not self.leased  # a model need not stay for as long as that
        self.running += 1
        assert self.running == 1
        graph = read_graph((folder / "graph.json").read_bytes(), CPU)
        self.asked.append(graph.digest)
        self.seen = [read_inputs(folder), read_weights(folder, graph.weights), folder]
        assert read_onednn_from(folder) == 1 << 20
        self.begun.set()
        try:
            await self.go.wait()
        finally:
            self.running -= 1
        if self.reason:
            return Result(reason=self.reason)
        self.cache.put(graph.digest, b"library", TERMS)
        return Result(graph.digest, "", 2.5, False)

    async def settled(self):
        self.go.set()
        if self.compiler._task is not None:
            await self.compiler._task

    def state(self) -> list[str]:
        return [graph.state for graph in self.compiler.status()]


@pytest.fixture
async def world(tmp_path):
    with ThreadPoolExecutor(1) as executor:
        made = World(tmp_path / "code", executor)
        yield made
        await made.compiler.aclose()


def answer(model) -> float:
    with torch.inference_mode():
        (y,) = model.graph.forward(W, X)
    return float(y.max())


async def test_code_takes_the_place_of_a_graph_that_cost_enough(world):
    model = world.model()
    world.compiler.ran(model, 0.9)
    assert world.compiler._task is None
    assert world.compiler.status() == []
    world.compiler.ran(model, 0.2)
    assert world.state() == ["compiling"]
    assert answer(model) == 3.0
    await world.settled()
    assert world.state() == ["compiled"]
    assert answer(model) == 7.0
    assert world.compiler.note(model.spec) == "compiled, 2.5x"
    assert world.compiler.status()[0].calls == 1


async def test_the_worker_gets_the_graph_and_the_weights_of_a_model(world):
    model = world.model()
    world.compiler.ran(model, 2.0)
    await world.settled()
    (inputs,), (weight,), folder = world.seen
    assert (inputs.dtype, inputs.shape) == (torch.float32, (-1, 2))
    assert inputs.most == (8, -1)
    assert torch.equal(weight, W)
    assert not folder.exists()


async def test_one_at_a_time_and_the_costliest_first(world):
    cheap, dear, first = (
        world.model(f"aten.{name}.default") for name in ("abs", "neg", "relu")
    )
    world.compiler.ran(first, 1.0)
    world.compiler.ran(cheap, 2.0)
    world.compiler.ran(dear, 3.0)
    await world.settled()
    world.compiler.ran(cheap, 0.5)
    await world.settled()
    world.compiler.ran(cheap, 0.1)
    await world.settled()
    assert world.asked == [m.graph.digest for m in (first, dear, cheap)]


async def test_a_graph_that_is_read_anew_runs_the_code_too(world):
    model = world.model()
    world.compiler.ran(model, 2.0)
    await world.settled()
    again = world.model()
    assert again.graph is not model.graph
    assert answer(again) == 3.0
    world.compiler.ran(again, 0.1)
    assert answer(again) == 7.0


async def test_what_is_refused_runs_eagerly_for_good(world):
    model = world.model()
    world.reason = "an output differs at sizes 2"
    world.compiler.ran(model, 2.0)
    await world.settled()
    assert answer(model) == 3.0
    assert world.compiler.note(model.spec) == "refused: an output differs at sizes 2"
    world.compiler.ran(model, 100.0)
    assert world.compiler._task is None
    assert len(world.asked) == 1


async def test_code_that_fails_in_service_is_taken_out(world):
    model = world.model()
    world.compiler.ran(model, 2.0)
    await world.settled()
    world.code.error = RuntimeError("no")
    assert answer(model) == 3.0
    world.compiler.ran(model, 0.1)
    assert world.state() == ["retired"]
    assert "RuntimeError" in world.compiler.note(model.spec)
    assert model.graph.forward == model.graph.eager
    world.compiler.ran(model, 100.0)
    assert world.compiler._task is None


async def test_a_store_that_is_away_is_asked_again_later(world):
    model = world.model()
    world.unreachable = True
    world.compiler.ran(model, 2.0)
    await world.settled()
    assert world.compiler.status() == []
    assert not world.leased
    world.unreachable = False
    world.compiler.ran(model, 0.5)
    assert world.compiler._task is None
    world.compiler.ran(model, 0.6)
    await world.settled()
    assert world.state() == ["compiled"]


async def test_a_library_that_does_not_read_back_is_no_library(world):
    model = world.model()
    world.compiler.ran(model, 2.0)
    world.cache.put = lambda *_: None
    await world.settled()
    assert world.state() == ["refused"]
    assert answer(model) == 3.0


async def test_a_library_that_does_not_load_costs_nothing_else(world):
    model = world.model()

    def opened(*_):
        raise OSError("undefined symbol")

    world.compiler._opened = opened
    world.compiler.ran(model, 2.0)
    await world.settled()
    assert world.compiler.note(model.spec) == "refused: internal error"
    assert answer(model) == 3.0


async def test_large_weights_are_not_written_out(world):
    model = world.model(size=2 << 30)
    world.compiler.ran(model, 2.0)
    await world.settled()
    assert world.state() == ["refused"]
    assert not world.asked


async def test_closing_ends_the_worker_and_begins_no_other(world):
    model = world.model()
    world.compiler.ran(model, 2.0)
    await world.begun.wait()
    await world.compiler.aclose()
    assert not world.running
    assert not world.seen[2].exists()
    world.compiler.ran(model, 2.0)
    assert world.compiler._task is None
