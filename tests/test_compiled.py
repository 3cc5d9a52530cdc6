"""Compiled code in a graph's place: on its terms, and never worse than eager."""

import pytest
import torch

from loader.compiled import Compiled, Term, Terms

TERMS = Terms(
    inputs=(
        Term(torch.int64, ("s0", "s1")),
        Term(torch.float32, ("s0", 8)),
    ),
    ranges={"s0": (1, 4), "s1": (1, 16)},
    outputs=1,
)
WEIGHT = torch.ones(3)


class FakeCode:
    """Answers 1, or fails; says which way it was called."""

    def __init__(self) -> None:
        self.ways: list[str] = []
        self.error: Exception | None = None

    def held(self, tensors):
        return self._run("held")

    def freed(self, tensors):
        return self._run("freed")

    def _run(self, way):
        self.ways.append(way)
        if self.error is not None:
            raise self.error
        return (torch.tensor(1),)


def eager(*tensors):
    """Answers 0, so that one sees who answered."""
    return (torch.tensor(0),)


def inputs(rows: int = 2, length: int = 5) -> tuple[torch.Tensor, ...]:
    return torch.zeros(rows, length, dtype=torch.int64), torch.zeros(rows, 8)


def answer(compiled: Compiled, *given: torch.Tensor) -> int:
    (found,) = compiled(WEIGHT, *given)
    return int(found)


@pytest.fixture
def code() -> FakeCode:
    return FakeCode()


@pytest.fixture
def compiled(code: FakeCode) -> Compiled:
    return Compiled(eager, code, 1, TERMS)


def test_a_call_on_its_terms_is_answered_by_the_code(compiled):
    assert answer(compiled, *inputs()) == 1
    assert answer(compiled, *inputs(4, 16)) == 1
    assert answer(compiled, *inputs(1, 1)) == 1
    assert (compiled.calls, compiled.declined) == (3, 0)


ids, x = inputs()


@pytest.mark.parametrize(
    "given",
    [
        inputs(5, 5),  # more rows than it was compiled for
        inputs(2, 17),
        (ids, torch.zeros(3, 8)),  # the same size by name, and another
        (ids, torch.zeros(2, 9)),
        (ids, torch.zeros(2, 8, 1)),
        (ids[0], x),
        (ids,),
        (ids, x, x),
        (ids.to(torch.int32), x),
        (ids, x.to(torch.float64)),
        (ids, torch.zeros(8, 2).t()),  # its code would take it for contiguous
        inputs(0, 5),
    ],
    ids=lambda given: " ".join(str(list(t.shape)) + str(t.dtype) for t in given),
)
def test_any_other_call_never_reaches_the_code(compiled, code, given):
    assert answer(compiled, *given) == 0
    assert answer(compiled, *given) == 0
    plain = all(tensor.is_contiguous() for tensor in given)
    if plain and [tensor.dtype for tensor in given] == [torch.int64, torch.float32]:
        assert not TERMS.meet([tensor.shape for tensor in given])
    assert not code.ways
    assert not compiled.failure


@pytest.fixture
def clock(monkeypatch):
    """Each call takes as long as we say."""

    class Clock:
        took = now = 0.0

        def perf_counter(self) -> float:
            self.now += self.took
            return self.now

    made = Clock()
    monkeypatch.setattr(
        "loader.compiled.time.perf_counter", lambda: made.perf_counter()
    )
    return made


def test_only_calls_known_to_be_short_keep_the_gil(compiled, code, clock):
    clock.took = 10e-6
    for _ in range(6):
        assert answer(compiled, *inputs()) == 1
    assert code.ways == ["freed"] * 3 + ["held"] * 3
    assert answer(compiled, *inputs(3, 5)) == 1
    assert code.ways[-1] == "freed"


def test_one_slow_call_does_not_make_a_size_slow_but_some_do(compiled, code, clock):
    clock.took = 10e-6
    for _ in range(9):
        compiled(WEIGHT, *inputs())
    code.ways.clear()
    for took in (1.0, 10e-6, 1.0, 1.0, 1.0):
        clock.took = took
        compiled(WEIGHT, *inputs())
    assert code.ways == ["held", "held", "held", "held", "freed"]


def test_code_that_fails_where_eager_does_not_is_retired(compiled, code):
    code.error = RuntimeError("no")
    assert answer(compiled, *inputs()) == 0
    assert "RuntimeError" in compiled.failure
    code.error = None
    assert answer(compiled, *inputs()) == 0
    assert len(code.ways) == 1


def test_a_request_that_is_wrong_itself_retires_nothing(code):
    def refusing(*tensors):
        raise IndexError("out of range")

    compiled = Compiled(refusing, code, 1, TERMS)
    code.error = RuntimeError("no")
    with pytest.raises(IndexError, match="out of range"):
        compiled(WEIGHT, *inputs())
    assert not compiled.failure
    code.error = None
    assert answer(compiled, *inputs()) == 1


def test_what_is_remembered_of_sizes_is_bounded(compiled, monkeypatch):
    monkeypatch.setattr("loader.compiled.MOST_SIZES", 4)
    for length in range(1, 17):
        assert answer(compiled, *inputs(2, length)) == 1
    assert len(compiled._seconds) <= 4
