"""The place that touches the fewest new bytes, against a look at every place."""

from hypothesis import given
from hypothesis import strategies as st

from loader.arena import Arena
from loader.slab import GRANULE
from loader.touched import Touched

SPAN = 24


def left_of(marks: list[bool]) -> list[tuple[int, int]]:
    """Runs of touched places as blocks leave them: one by one, side by side."""
    return [(i, i + 1) for i, touched in enumerate(marks) if touched]


@given(
    marks=st.lists(st.booleans(), min_size=SPAN, max_size=SPAN),
    hole=st.tuples(st.integers(0, SPAN), st.integers(0, SPAN)).map(sorted),
    need=st.integers(1, SPAN),
    high=st.booleans(),
)
def test_no_place_of_the_hole_is_better(marks, hole, need, high) -> None:
    start, end = hole
    if end - start < need:
        return
    at = end - need if high else start
    fresh, spot = Touched(left_of(marks)).spot(start, end, need, at)

    def new(place: int) -> int:
        return sum(not touched for touched in marks[place : place + need])

    assert start <= spot <= end - need
    assert fresh == new(spot)
    assert fresh == min(map(new, range(start, end - need + 1)))
    if fresh == new(at):
        assert spot == at, "of equals, the one that was wanted"


def lazy(*sizes: int) -> tuple[Arena, list]:
    arena = Arena(lambda: 1 << 20, lazy=True)
    arena.add(64 * GRANULE)
    return arena, [arena.take(size * GRANULE, str(i)) for i, size in enumerate(sizes)]


def test_memory_that_was_touched_is_taken_before_a_smaller_hole_that_was_not() -> None:
    arena, (_, big, _) = lazy(2, 8, 2)
    arena.free(big)
    before = arena.touched
    assert arena.take(3 * GRANULE).start == big.start
    assert arena.touched == before


def test_a_model_of_the_same_graph_is_its_neighbour_where_that_touches_nothing() -> (
    None
):
    arena, (first, second, third, _) = lazy(2, 2, 2, 2)
    arena.free(second)
    arena.free(third)
    again = arena.take(2 * GRANULE, "3")
    assert again.start == third.start
    assert arena.take(2 * GRANULE, "0").start == first.end
