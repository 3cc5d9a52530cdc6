"""What a model is: `model.json`, parsed once into frozen values.

Owns: the manifest's format and its checks. Must not: fetch anything or touch torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class FileRef:
    """A file beside model.json: its name, size in bytes and SHA-256 (hex)."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """An input or output: OIP name and datatype, shape with -1 for a free dimension.

    `low`, `high`: inclusive range of an integer input that indexes a table; None: any.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    low: int | None = None
    high: int | None = None


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One version of one model.

    `max_batch_size` >= 1: dimension 0 of every input and output is the batch (and -1 in
    `shape`) and at most so many rows go through in one call; 0: no batch dimension,
    one request is one call.
    """

    name: str
    version: str
    graph: FileRef
    weights: FileRef
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch_size: int
    labels: Mapping[str, str] = field(default_factory=dict)
    pin: bool = False
    priority: int = 0
    tenant: str = ""

    @property
    def key(self) -> str:
        """What the cache and the policies call this model: `name:version@content`.

        The content's digest is part of it, so an overwritten version is another model
        and no answer ever mixes two generations.
        """
        return (
            f"{self.name}:{self.version}"
            f"@{self.weights.sha256[:12]}{self.graph.sha256[:4]}"
        )
