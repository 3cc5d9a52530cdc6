"""Linear layers that run in oneDNN: torch's answers, and torch's errors."""

import json
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import structlog
import torch

from loader.across import across
from loader.compile_job import read_onednn_from, write_job
from loader.graph import Graph, read_graph
from loader.graphs import GraphShelf
from loader.linear import prefer_onednn, rewritten
from loader.manifest import FileRef
from loader.onednn import ROWS_A_CALL, OneDnn, operator
from loader.store import Store

CPU = torch.device("cpu")
DEEP, WIDE = 36, 48
LAYER = ("linear", [WIDE, DEEP], [WIDE])
TURNED = ("addmm", [DEEP, WIDE], [WIDE])
needs_onednn = pytest.mark.skipif(operator() is None, reason="this torch has no oneDNN")


def text_of(*layers: tuple[str, list, list], dtype: str = "float32", **kwargs) -> bytes:
    """`layers`: an op, the shape of its weight, and of its bias; one after the other.
    `kwargs`: of every op; `bias_dtype`: of the biases."""
    weights, nodes, x = [], [], {"input": "x"}
    bias_dtype = kwargs.pop("bias_dtype", dtype)
    for at, (op, shape, bias) in enumerate(layers):
        weights.append({"name": f"w{at}", "dtype": dtype, "shape": shape})
        args = [x, {"weight": f"w{at}"}]
        if bias:
            weights.append({"name": f"b{at}", "dtype": bias_dtype, "shape": bias})
            args.insert(0 if op == "addmm" else 2, {"weight": f"b{at}"})
        node = {"name": f"n{at}", "op": f"aten.{op}.default", "args": args}
        nodes.append({**node, "kwargs": kwargs} if kwargs else node)
        x = {"node": f"n{at}"}
    document = {
        "format": 1,
        "weights": weights,
        "inputs": ["x"],
        "nodes": nodes,
        "outputs": [{"name": "y", "value": x}],
    }
    return json.dumps(document).encode()


def graph_of(*layers: tuple[str, list, list], dtype="float32", **kwargs) -> Graph:
    return read_graph(text_of(*layers, dtype=dtype, **kwargs), CPU)


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(math.prod(shape)))


def weights_of(graph: Graph) -> list[torch.Tensor]:
    return [numbers(*w.shape).to(w.dtype) / 8 for w in graph.weights]


class Asked:
    """The operator, or what stands for it; keeps the sizes that it was asked for."""

    def __init__(self, layer: Callable[..., torch.Tensor] | None = None) -> None:
        self.sizes: list[torch.Size] = []
        self._layer = layer or operator()

    def __call__(self, x, *rest):
        self.sizes.append(x.shape)
        return self._layer(x, *rest)


ROWS = [
    numbers(4, DEEP),
    numbers(65, DEEP),
    numbers(DEEP, 7).T,
    numbers(5, 2 * DEEP)[:, ::2],
    numbers(1, DEEP).expand(6, DEEP),
]
MORE = [
    numbers(2, 3, DEEP),
    numbers(2, 1, 5, DEEP),
    numbers(3, 9, DEEP).transpose(0, 1),
]


@needs_onednn
@pytest.mark.parametrize(
    ("layer", "x"),
    [
        *[(LAYER, x) for x in (*ROWS, *MORE)],
        *[(("linear", [WIDE, DEEP], []), x) for x in (*ROWS, *MORE)],
        *[(TURNED, x) for x in ROWS],
    ],
)
def test_a_layer_gives_what_torch_gives(layer, x) -> None:
    graph, asked = graph_of(layer), Asked()
    sooner = rewritten(graph, OneDnn(1, asked))
    given = [*weights_of(graph), x]
    with torch.inference_mode():
        (wanted,), (got,) = graph.plain(*given), sooner(*given)
    assert len(asked.sizes) == 1
    torch.testing.assert_close(got, wanted)
    assert got.stride() == wanted.stride()


@needs_onednn
@pytest.mark.parametrize("layer", [LAYER, TURNED])
def test_from_so_much_work_on(layer) -> None:
    """And never for fewer than four rows, which are bound by memory."""
    graph, asked, one = graph_of(layer), Asked(), DEEP * WIDE
    with torch.inference_mode():
        for least, rows in ((1, 4), (10 * one, 10), (10 * one + 1, 11)):
            sooner = rewritten(graph, OneDnn(least, asked))
            for asking in (1, rows - 1, rows):
                sooner(*weights_of(graph), numbers(asking, DEEP))
    assert [shape[0] for shape in asked.sizes] == [4, 10, 12]


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (LAYER, numbers(30, DEEP + 1)),
        (LAYER, numbers(30, DEEP).double()),
        (LAYER, numbers(DEEP * WIDE)),
        (TURNED, numbers(30, DEEP + 1)),
        (TURNED, numbers(5, 6, DEEP)),
        (TURNED, numbers(30, DEEP).double()),
    ],
)
def test_what_does_not_fit_is_refused_in_the_words_of_torch(layer, x) -> None:
    graph, asked = graph_of(layer), Asked()
    words = []
    for forward in (graph.plain, rewritten(graph, OneDnn(1, asked))):
        with pytest.raises(RuntimeError) as told:
            forward(*weights_of(graph), x)
        words.append(str(told.value))
    assert words[0] == words[1]
    assert asked.sizes == []


@pytest.mark.parametrize(
    ("layers", "changed"),
    [
        ([("linear", [WIDE, DEEP], [1])], {}),
        ([("addmm", [DEEP, WIDE], [1])], {}),
        ([("linear", [DEEP], [])], {}),
        ([("linear", [0, DEEP], [])], {}),
        ([("linear", [31, DEEP], [])], {}),
        ([("linear", [WIDE, 31], [])], {}),
        ([("addmm", [DEEP, 31], [31])], {}),
        ([LAYER], {"dtype": "bfloat16"}),
        ([LAYER], {"bias_dtype": "float64"}),
        ([TURNED], {"beta": 2}),
        ([("matmul", [DEEP, WIDE], [])], {}),
    ],
)
def test_other_layers_stay_as_they_are(layers, changed) -> None:
    assert rewritten(graph_of(*layers, **changed), OneDnn(1, Asked())) is None


def test_a_layer_that_only_a_crowd_of_rows_makes_large_stays_as_it_is() -> None:
    graph, most = graph_of(LAYER), ROWS_A_CALL * DEEP * WIDE
    assert rewritten(graph, OneDnn(most, Asked())) is not None
    assert rewritten(graph, OneDnn(most + 1, Asked())) is None


def test_what_an_op_made_is_no_weight() -> None:
    """Its size is known only when it is there."""
    document = {
        "format": 1,
        "weights": [{"name": "w", "dtype": "float32", "shape": [WIDE, DEEP]}],
        "inputs": ["x"],
        "nodes": [
            {"name": "t", "op": "aten.neg.default", "args": [{"weight": "w"}]},
            {
                "name": "n",
                "op": "aten.linear.default",
                "args": [{"input": "x"}, {"node": "t"}],
            },
        ],
        "outputs": [{"name": "y", "value": {"node": "n"}}],
    }
    graph = read_graph(json.dumps(document).encode(), CPU)
    assert rewritten(graph, OneDnn(1, Asked())) is None


@needs_onednn
def test_each_layer_has_its_own_sizes() -> None:
    graph = graph_of(LAYER, ("linear", [40, WIDE], []), ("addmm", [40, 32], [32]))
    given, asked = [*weights_of(graph), numbers(16, DEEP)], Asked()
    with torch.inference_mode():
        got = rewritten(graph, OneDnn(1, asked))(*given)
        torch.testing.assert_close(got, graph.plain(*given))
    assert [shape[1] for shape in asked.sizes] == [DEEP, WIDE, 40]


@needs_onednn
@pytest.mark.parametrize("rank", [2, 3])
def test_several_models_of_the_graph_are_still_one_call(rank) -> None:
    """A chain of `baddbmm`, or torch.func.vmap, of torch's own ops: vmap has no rule
    for oneDNN's, and would go model by model."""
    graph = graph_of(LAYER, ("linear", [32, WIDE], [32]))
    prefer_onednn(graph, OneDnn(1, operator()))
    assert graph.forward is graph.eager is not graph.plain
    weights, x = weights_of(graph), numbers(5, *[3] * (rank - 2), 9, DEEP)
    stacks = [torch.stack([w * at for at in range(1, 6)]) for w in weights]
    with torch.inference_mode():
        shared = across(graph, [rank])
        (together,) = shared(*stacks, x)
        for at in range(5):
            (alone,) = graph(*[stack[at] for stack in stacks], x[at])
            torch.testing.assert_close(together[at], alone)
    assert ("baddbmm" in shared.__code__.co_names) is (rank == 2)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("std::bad_alloc"),
        MemoryError(),
    ],
)
def test_memory_that_ends_is_nobody_s_fault(error) -> None:
    """The call is torch's, which needs less of it, and the next one oneDNN's again."""

    def fails(*args: object) -> torch.Tensor:
        raise error

    graph, asked = graph_of(LAYER), Asked(fails)
    sooner = rewritten(graph, OneDnn(1, asked))
    given = [*weights_of(graph), numbers(16, DEEP)]
    with torch.inference_mode(), structlog.testing.capture_logs() as told:
        for _ in range(3):
            assert torch.equal(sooner(*given)[0], graph.plain(*given)[0])
    assert len(asked.sizes) == 3
    assert told == []


def test_what_onednn_will_not_do_torch_does_from_then_on() -> None:
    def fails(*args: object) -> torch.Tensor:
        raise RuntimeError("could not create a primitive")

    graph, asked = graph_of(LAYER, ("linear", [32, WIDE], [32])), Asked(fails)
    sooner = rewritten(graph, OneDnn(1, asked))
    given = [*weights_of(graph), numbers(16, DEEP)]
    with torch.inference_mode(), structlog.testing.capture_logs() as told:
        for _ in range(3):
            assert torch.equal(sooner(*given)[0], graph.plain(*given)[0])
    assert len(asked.sizes) == 2  # each layer once
    assert [line["event"] for line in told] == ["a linear layer leaves oneDNN"] * 2


@needs_onednn
def test_many_threads_at_once_with_ever_new_numbers_of_rows() -> None:
    graph = graph_of(LAYER, ("linear", [32, WIDE], [32]))
    sooner = rewritten(graph, OneDnn(1, operator()))
    weights = weights_of(graph)

    def one(rows: int) -> bool:
        with torch.inference_mode():
            x = numbers(rows, DEEP)
            return torch.allclose(
                sooner(*weights, x)[0], graph.plain(*weights, x)[0], atol=1e-5
            )

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(one, [4 + n % 97 for n in range(400)]))


# -- where it is acted on ------------------------------------------------------------


@needs_onednn
@pytest.mark.parametrize("onednn", [None, OneDnn(1, operator())])
async def test_a_shelf_gives_graphs_that_run_so(onednn) -> None:
    text, store = text_of(LAYER), Store.open("memory://")
    await store.put("m/1/graph.json", text)
    digest = read_graph(text, CPU).digest
    spec = SimpleNamespace(
        directory="m/1", graph=FileRef("graph.json", len(text), digest)
    )
    with ThreadPoolExecutor(1) as threads:
        shelf = GraphShelf(store, CPU, threads, onednn=onednn)
        graph = await shelf.get(spec)
        await shelf.aclose()
    assert graph.forward is graph.eager
    assert (graph.eager is graph.plain) is (onednn is None)


@pytest.mark.parametrize("onednn_from", [0, 1 << 20])
def test_a_compile_job_says_what_it_must_be_quicker_than(tmp_path, onednn_from) -> None:
    write_job(tmp_path, text_of(LAYER), (), [], onednn_from)
    assert read_onednn_from(tmp_path) == onednn_from
