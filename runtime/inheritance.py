"""What an engine gets from the one before it, by way of who watches over both.

Owns: the shape of it. Must not: keep any of it alive (runtime/tree/supervisor.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Inheritance:
    """`residents`: (model, version) of who was in, the last used first; None: as the
    settings say. `host`: descriptors of the host tier's files (loader/estate.py).
    `onednn_from`: what was measured (runtime/kernels.py); None: it was not."""

    residents: Sequence[tuple[str, str]] | None = None
    host: tuple[int, int] | None = None
    onednn_from: int | None = None
