"""Linear layers that run in oneDNN: torch's answers, and torch's errors."""

import json
import math

import pytest
import torch

from loader import linear
from loader.across import across
from loader.graph import Graph, read_graph
from loader.linear import MOST, crossover, in_onednn, measured, rewritten
from runtime.config import Settings
from runtime.devices import onednn_from

CPU = torch.device("cpu")
DEEP, WIDE = 24, 40
pytestmark = pytest.mark.skipif(linear._onednn() is None, reason="torch has no oneDNN")


def graph_of(*layers: tuple[str, list, list], dtype: str = "float32") -> Graph:
    """`layers`: the shape of a weight, of its bias, or what stands for either."""
    weights, nodes, x = [], [], {"input": "x"}
    for at, (op, shape, bias) in enumerate(layers):
        weights.append({"name": f"w{at}", "dtype": dtype, "shape": shape})
        args = [x, {"weight": f"w{at}"}]
        if bias:
            weights.append({"name": f"b{at}", "dtype": dtype, "shape": bias})
            args.append({"weight": f"b{at}"})
        nodes.append({"name": f"n{at}", "op": f"aten.{op}.default", "args": args})
        x = {"node": f"n{at}"}
    document = {
        "format": 1,
        "weights": weights,
        "inputs": ["x"],
        "nodes": nodes,
        "outputs": [{"name": "y", "value": x}],
    }
    return read_graph(json.dumps(document).encode(), CPU)


LAYER = ("linear", [WIDE, DEEP], [WIDE])


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(math.prod(shape)))


def weights_of(graph: Graph) -> list[torch.Tensor]:
    return [numbers(*w.shape).to(w.dtype) / 8 for w in graph.weights]


def rows_in_onednn(monkeypatch) -> list[torch.Size]:
    """The sizes of what oneDNN is asked from now on."""
    asked, real = [], linear._onednn()

    def seen(x, *rest):
        asked.append(x.shape)
        return real(x, *rest)

    monkeypatch.setattr(linear, "_onednn", lambda: seen)
    return asked


@pytest.mark.parametrize("bias", [[], [WIDE]])
@pytest.mark.parametrize(
    "x",
    [
        numbers(4, DEEP),
        numbers(65, DEEP),
        numbers(2, 3, DEEP),
        numbers(2, 1, 5, DEEP),
        numbers(DEEP, 7).T,
        numbers(5, 2 * DEEP)[:, ::2],
        numbers(1, DEEP).expand(6, DEEP),
        numbers(3, 9, DEEP).transpose(0, 1),
    ],
    ids=lambda x: f"{tuple(x.shape)} by {x.stride()}",
)
def test_a_layer_gives_what_torch_gives(monkeypatch, x, bias) -> None:
    asked = rows_in_onednn(monkeypatch)
    graph = graph_of(("linear", [WIDE, DEEP], bias))
    sooner = rewritten(graph, 1)
    given = [*weights_of(graph), x]
    with torch.inference_mode():
        (wanted,), (got,) = graph.plain(*given), sooner(*given)
    assert asked == [x.shape]
    torch.testing.assert_close(got, wanted)
    assert got.stride() == wanted.stride()


def test_from_so_much_work_on(monkeypatch) -> None:
    """And never for fewer than four rows, which are bound by memory."""
    asked = rows_in_onednn(monkeypatch)
    graph = graph_of(LAYER)
    with torch.inference_mode():
        for least, rows in ((1, 4), (9 * DEEP * WIDE, 9), (9 * DEEP * WIDE + 1, 10)):
            sooner = rewritten(graph, least)
            for asking in (1, rows - 1, rows):
                sooner(*weights_of(graph), numbers(asking, DEEP))
    assert [shape[0] for shape in asked] == [4, 9, 10]


@pytest.mark.parametrize(
    "x", [numbers(30, DEEP + 1), numbers(30, DEEP).double(), numbers(DEEP * WIDE)]
)
def test_what_does_not_fit_is_refused_in_the_words_of_torch(x) -> None:
    graph = graph_of(LAYER)
    sooner = rewritten(graph, 1)
    for forward in (graph.plain, sooner):
        with pytest.raises(RuntimeError) as told:
            forward(*weights_of(graph), x)
        if forward is graph.plain:
            words = str(told.value)
    assert str(told.value) == words


@pytest.mark.parametrize(
    ("layers", "dtype"),
    [
        ([("linear", [WIDE, DEEP], [1])], "float32"),
        ([("linear", [DEEP], [])], "float32"),
        ([("linear", [0, DEEP], [])], "float32"),
        ([LAYER], "bfloat16"),
        ([("matmul", [DEEP, WIDE], [])], "float32"),
    ],
)
def test_other_layers_stay_as_they_are(layers, dtype) -> None:
    assert rewritten(graph_of(*layers, dtype=dtype), 1) is None


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
    assert rewritten(read_graph(json.dumps(document).encode(), CPU), 1) is None


def test_the_graph_itself_stays_as_it_is() -> None:
    """What compiles it, and what runs several models as one, reads torch's own ops."""
    graph = graph_of(LAYER, ("linear", [8, WIDE], [8]))
    before = graph.plain
    graph.eager = graph.forward = rewritten(graph, 1)
    assert graph.plain is before
    assert "baddbmm" in across(graph, [2]).__code__.co_names
    weights, x = weights_of(graph), numbers(5, 9, DEEP)
    stacks = [torch.stack([w * at for at in range(1, 6)]) for w in weights]
    with torch.inference_mode():
        (shared,) = across(graph, [2])(*stacks, x)
        for at in range(5):
            (alone,) = graph(*[stack[at] for stack in stacks], x[at])
            torch.testing.assert_close(shared[at], alone)


@pytest.mark.parametrize(
    ("small", "large", "least"),
    [
        ((3.0e-6, 13e-6), (390e-6, 205e-6), 1 << 20),  # an EPYC of 2024
        ((3.0e-6, 13e-6), (200e-6, 195e-6), None),  # an Intel: no sooner
        ((3.0e-6, 13e-6), (200e-6, 400e-6), None),
        ((3.0e-6, 3.0e-6), (390e-6, 205e-6), 1 << 18),  # nothing dearer to begin with
        ((3.0e-6, 1.0e-4), (390e-6, 300e-6), 1 << 24),
        ((3.0e-6, 1.0e-2), (390e-6, 300e-6), None),  # sooner, for sizes that none has
    ],
)
def test_where_it_begins_to_pay(small, large, least) -> None:
    assert crossover(small, large) == least


def test_it_is_measured_here() -> None:
    found = measured()
    assert found is None or (1 << 18 <= found <= MOST and found & (found - 1) == 0)


def test_a_torch_without_the_operator_goes_on(monkeypatch) -> None:
    monkeypatch.setattr(linear, "_onednn", lambda: None)
    assert measured() is None


def test_an_operator_that_fails_is_not_used(monkeypatch) -> None:
    def fails(*args: object) -> torch.Tensor:
        raise RuntimeError("built without it")

    monkeypatch.setattr(linear, "_onednn", lambda: fails)
    assert measured() is None


def test_what_onednn_has_no_way_to_do_torch_does(monkeypatch) -> None:
    def fails(*args: object) -> torch.Tensor:
        raise RuntimeError("could not create a primitive")

    monkeypatch.setattr(linear, "_onednn", lambda: fails)
    graph = graph_of(LAYER)
    given = [*weights_of(graph), numbers(16, DEEP)]
    with torch.inference_mode():
        assert torch.equal(rewritten(graph, 1)(*given)[0], graph.plain(*given)[0])


def test_who_wants_torch_s_own_kernels_has_them(monkeypatch) -> None:
    monkeypatch.setattr("runtime.devices.measured", lambda: 1 << 20)
    settings = Settings(store="memory://")
    assert onednn_from(settings, CPU) == 1 << 20
    assert onednn_from(settings, torch.device("cuda:0")) is None
    own = Settings(store="memory://", kernels="torch")
    assert onednn_from(own, CPU) is None


def test_one_layer_for_each_place() -> None:
    """Each has sizes of its own, though all have one name."""
    graph = graph_of(LAYER, ("linear", [8, WIDE], []), ("linear", [8, 8], [8]))
    sooner = rewritten(graph, 1)
    given = [*weights_of(graph), numbers(16, DEEP)]
    with torch.inference_mode():
        torch.testing.assert_close(sooner(*given), graph.plain(*given))
    assert in_onednn(8, 4) is not in_onednn(8, 4)
