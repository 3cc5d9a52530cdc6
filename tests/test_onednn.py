"""oneDNN: when it is chosen, and that it keeps no more than it may."""

import pytest
import structlog
import torch

from loader import onednn
from loader.onednn import (
    KEPT,
    KEPT_EACH,
    MOST,
    ROWS_A_CALL,
    Compared,
    Full,
    OneDnn,
    Share,
    compared,
    crossover,
    operator,
    rows_for,
)
from runtime.config import Settings
from runtime.kernels import chosen_kernels

CPU = torch.device("cpu")


def test_the_torch_that_is_pinned_has_the_operator() -> None:
    assert operator() is not None


def test_rows_are_made_up_to_a_few_numbers() -> None:
    made_up = [rows_for(rows) for rows in range(4, ROWS_A_CALL + 1)]
    assert made_up[:14] == [4, 6, 6, 8, 8, 10, 10, 12, 12, 14, 14, 16, 16, 20]
    assert len(set(made_up)) == 27
    for rows, found in enumerate(made_up, 4):
        assert rows <= found <= max(rows + 1, 1.25 * rows - 1)
        assert rows_for(found) == found


def test_rows_that_are_made_up_change_no_answer() -> None:
    """And none is shown: what they hold is nobody's."""
    asked = []

    def layer(x, weight, bias, *_):
        asked.append(x)
        return torch._C._nn.linear(x, weight, bias)

    x, weight, bias = torch.rand(3, 7, 20), torch.rand(30, 20), torch.rand(30)
    with torch.inference_mode():
        got = Share(OneDnn(1, layer)).linear(x, weight, bias)
        torch.testing.assert_close(got, torch._C._nn.linear(x, weight, bias))
    (made_up,) = asked
    assert made_up.shape == (24, 20)
    assert (made_up[21:] == 0).all()


@pytest.mark.parametrize("rows", [ROWS_A_CALL + 1, 2 * ROWS_A_CALL, 3000])
def test_many_rows_are_several_calls(rows) -> None:
    asked = []

    def layer(x, weight, bias, *_):
        asked.append(x.shape[0])
        return torch._C._nn.linear(x, weight, bias)

    x, weight = torch.rand(rows, 8), torch.rand(5, 8)
    with torch.inference_mode():
        got = Share(OneDnn(1, layer)).linear(x.view(1, rows, 8), weight, None)
        torch.testing.assert_close(got, (x @ weight.T).view(1, rows, 5))
    whole, rest = divmod(rows, ROWS_A_CALL)
    assert asked == [max(4, rows_for(rest))] * bool(rest) + [ROWS_A_CALL] * whole


class Counted:
    """Counts the sizes that it is asked for."""

    def __init__(self) -> None:
        self.sizes: set[tuple[int, ...]] = set()

    def __call__(self, x, weight, bias, *_):
        self.sizes.add((*x.shape, len(weight), bias is None, weight.stride(0)))
        return x.new_empty(x.shape[0], weight.shape[0])


def all_rows(share: Share, wide: int) -> list[bool]:
    """Whether it takes each number of rows, by such a weight: with a bias, without, and
    the other way round."""
    x, taken = torch.zeros(1, 16), []
    forms = (
        (torch.empty(wide, 16), None),
        (torch.empty(wide, 16), torch.empty(wide)),
        (torch.empty(16, wide).t(), None),
    )
    for rows in range(4, 3 * ROWS_A_CALL):
        for weight, bias in forms:
            try:
                share.linear(x.expand(rows, 16), weight, bias)
                taken.append(True)
            except Full:
                taken.append(False)
    return taken


def test_a_graph_and_all_of_them_have_so_many_sizes_and_no_more() -> None:
    """Each costs half a megabyte, and callers choose how many rows they send."""
    layer = Counted()
    whole = OneDnn(1, layer)
    with structlog.testing.capture_logs() as told:
        for graph in range(5):
            share = Share(whole)
            wide = 17 + 2 * graph
            taken = all_rows(share, wide) + all_rows(share, wide + 1)
            assert taken[0] is (graph < 3), "one graph leaves room for others"
            assert not taken[-1]
            assert len(layer.sizes) == min(KEPT, (graph + 1) * KEPT_EACH)
            # Those that it knows go on.
            assert all_rows(share, wide)[0] is (graph < 3)
    assert [line["event"] for line in told] == ["oneDNN is asked for no more sizes"]


def test_graphs_share_what_they_have_in_common() -> None:
    layer = Counted()
    whole = OneDnn(1, layer)
    for _ in range(5):
        share = Share(whole)
        share.linear(torch.zeros(8, 16), torch.empty(17, 16), None)
    assert len(whole.sizes) == len(layer.sizes) == 1


def test_a_size_that_failed_takes_no_place() -> None:
    def fails(*args: object) -> torch.Tensor:
        raise RuntimeError

    whole = OneDnn(1, fails)
    with pytest.raises(RuntimeError):
        Share(whole).linear(torch.zeros(8, 16), torch.empty(17, 16), None)
    assert not whole.sizes


@pytest.mark.parametrize(
    ("small", "large", "found"),
    [
        ((3.0e-6, 13e-6), (390e-6, 205e-6), 1 << 21),  # an EPYC of 2024
        ((3.0e-6, 13e-6), (200e-6, 168e-6), 0),  # 1.19 times
        ((3.0e-6, 13e-6), (200e-6, 165e-6), 1 << 23),  # 1.21 times
        ((3.0e-6, 13e-6), (200e-6, 400e-6), 0),
        ((3.0e-6, 3.0e-6), (390e-6, 205e-6), 1 << 18),  # nothing dearer to begin with
        ((13e-6, 3.0e-6), (390e-6, 205e-6), 1 << 18),
        ((3.0e-6, 2.0e-4), (390e-6, 300e-6), 1 << 26),
        ((3.0e-6, 1.0e-3), (390e-6, 300e-6), 0),  # quicker only where none is
    ],
)
def test_where_it_begins_to_pay(small, large, found) -> None:
    told = crossover(small, large)
    assert told.onednn_from == found
    assert bool(told.reason) is not bool(found)
    assert told.speedup == large[0] / large[1]


@pytest.mark.parametrize(
    ("seconds", "found"), [(0.5, True), (1.0, False), (2.0, False)]
)
def test_the_quicker_one_is_chosen(monkeypatch, seconds, found) -> None:
    """With a clock that each call moves by what it is said to take."""
    now = [0.0]

    def takes(share: float):
        def layer(x, weight, *_):
            now[0] += 1e-6 + share * x.numel() * weight.shape[0] * 1e-11
            return x

        return layer

    monkeypatch.setattr(onednn, "torch_linear", takes(1.0))
    told = compared(takes(seconds), lambda: now[0])
    assert bool(told.onednn_from) is found
    assert told.speedup == pytest.approx(1 / seconds, rel=0.1)


def test_it_is_measured_here() -> None:
    found = compared(operator())
    assert found.onednn_from in (0, *(1 << power for power in range(18, 27)))
    assert found.onednn_from <= MOST
    assert bool(found.reason) is not bool(found.onednn_from)


def test_a_torch_without_it_goes_on() -> None:
    def fails(*args: object) -> torch.Tensor:
        raise RuntimeError("built without it")

    for quicker in (None, fails):
        found = compared(quicker)
        assert found.onednn_from == 0
        assert "oneDNN" in found.reason


def test_a_busy_process_measures_the_same_threads() -> None:
    """One thread a call while it is measured, and then as many as before."""
    seen, before = set(), torch.get_num_threads()

    def layer(x, weight, *_):
        seen.add(torch.get_num_threads())
        return x

    torch.set_num_threads(3)
    try:
        compared(layer)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert seen == {1}


def test_the_settings_and_an_earlier_engine_have_their_say(monkeypatch) -> None:
    settings, found = Settings(store="memory://"), [Compared(1 << 20, 1.9)]
    monkeypatch.setattr("runtime.kernels.compared", lambda layer: found[-1])
    assert chosen_kernels(settings, CPU).onednn_from == 1 << 20
    assert chosen_kernels(settings, CPU, 1 << 22).onednn_from == 1 << 22
    assert chosen_kernels(settings, CPU, 0) is None
    assert chosen_kernels(settings, torch.device("cuda:0")) is None
    assert chosen_kernels(Settings(store="memory://", kernels="torch"), CPU) is None
    found.append(Compared(0, 1.0, "not quicker here"))
    assert chosen_kernels(settings, CPU) is None
