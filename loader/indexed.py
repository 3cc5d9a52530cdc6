"""Which inputs of a graph are row numbers of a table, and how many rows there are.

Owns: following an input's values, unchanged, to the look-ups they reach. Must not: know
JSON, or judge a manifest (loader/graph.py).

An index beyond its table ends a process on a GPU, so a manifest must bound such an
input. Only values that reach the look-up as they came are followed: what a graph
computes first (`ids + 1`) is bounded by nothing that one could read here, and is the
packer's to know.
"""

from collections.abc import Mapping

from torch import fx

LOOK_UP = "aten.embedding.default"
"""The op that takes rows (its second argument) of a table (its first)."""

SAME_VALUES = frozenset(
    f"aten.{name}"
    for name in (
        *("to.dtype", "view.default", "reshape.default", "flatten.using_ints"),
        *("contiguous.default", "clone.default", "expand.default", "slice.Tensor"),
        *("unsqueeze.default", "squeeze.dim", "select.int", "transpose.int"),
        *("permute.default", "t.default"),
    )
)
"""Ops whose result holds no value that their first argument does not."""


class Indexed:
    """Told of every value in order; `rows`: of each input that is looked up, the rows
    of the smallest table."""

    def __init__(self) -> None:
        self.rows: dict[str, int] = {}
        self._tables: dict[fx.Node, int] = {}
        self._origin: dict[fx.Node, str] = {}

    def weight(self, node: fx.Node, shape: tuple[int, ...]) -> None:
        """A weight: a table, if it is looked into."""
        self._tables[node] = shape[0] if shape else 0

    def input(self, node: fx.Node, name: str) -> None:
        """An input."""
        self._origin[node] = name

    def call(self, op: str, given: Mapping[str, object], made: fx.Node) -> None:
        """A call, its arguments by name in the order of its parameters."""
        values = [value for value in given.values() if isinstance(value, fx.Node)]
        if op in SAME_VALUES and values and values[0] in self._origin:
            self._origin[made] = self._origin[values[0]]
        if op == LOOK_UP:
            table, index = (given.get(name) for name in ("weight", "indices"))
            if isinstance(table, fx.Node) and isinstance(index, fx.Node):
                self._looked_up(table, index)

    def _looked_up(self, table: fx.Node, index: fx.Node) -> None:
        name, rows = self._origin.get(index), self._tables.get(table)
        if name is not None and rows is not None:
            self.rows[name] = min(rows, self.rows.get(name, rows))
