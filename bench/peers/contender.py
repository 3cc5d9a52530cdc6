"""What a contender is: a name, a way to get it, a command to start it.

Owns: the vocabulary. Must not: start, ask or measure anything (bench/peers/running.py).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Venv:
    """Packages with pinned versions, in an environment of their own (venvs.py)."""

    name: str
    requirements: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Site:
    """Where a contender is to run. `folder` is its own, to write what it needs in."""

    folder: Path
    python: str
    """The interpreter of its environment."""
    models: Path
    """What it serves: see the bench that asks for it."""
    grpc_port: int
    http_port: int


@dataclass(frozen=True, slots=True)
class Contender:
    """One server to measure. It speaks the Open Inference Protocol over gRPC."""

    name: str
    """As on the command line."""
    label: str
    """As in a plot."""
    command: Callable[[Site], Sequence[str]]
    """Write what is needed under the site's folder; what to execute."""
    venv: Venv | None = None
    """None: our own environment."""
    environ: Callable[[Site], Mapping[str, str]] = field(default=lambda site: {})
    """Set besides what all have; an empty value unsets it."""
    everywhere: bool = False
    """It listens on all addresses and cannot be told otherwise: run it only where there
    is no network (loopback.py)."""
    missing: Callable[[], str] = field(default=lambda: "")
    """Why it cannot run here; empty if it can."""
    metadata: Callable[[str], Sequence[tuple[str, str]]] = field(
        default=lambda model: ()
    )
    """Headers that a request for this model needs."""


class Unavailable(Exception):
    """A contender cannot run here; the text says why."""
