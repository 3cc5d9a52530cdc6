"""The three architectures of the demo, 200 to 310 KB of weights each.

Owns: the modules and what a request to each looks like. Must not: train or pack.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import nn

SIDE = 8
CLASSES = 10


class Mlp(nn.Module):
    """Three linear layers over the 64 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(SIDE * SIDE, 256),
            nn.ReLU(),
            nn.Linear(256, 224),
            nn.ReLU(),
            nn.Linear(224, CLASSES),
        )

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Logits, [batch, 10]."""
        logits: torch.Tensor = self.layers(pixels)
        return logits


class Cnn(nn.Module):
    """Two convolutions, one pooling, two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 12, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(12, 24, 3, padding=1),
            nn.ReLU(),
        )
        self.classify = nn.Sequential(
            nn.Flatten(),
            nn.Linear(24 * (SIDE // 2) ** 2, 160),
            nn.ReLU(),
            nn.Linear(160, CLASSES),
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits, [batch, 10]."""
        logits: torch.Tensor = self.classify(self.features(image))
        return logits


class Transformer(nn.Module):
    """One pre-norm encoder layer; each row of the image is a token."""

    WIDTH = 64
    HEADS = 4
    HIDDEN = 256

    def __init__(self) -> None:
        super().__init__()
        width = self.WIDTH
        self.embed = nn.Linear(SIDE, width)
        self.places = nn.Parameter(torch.randn(SIDE, width) * 0.1)
        self.before_attention = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.attended = nn.Linear(width, width)
        self.before_hidden = nn.LayerNorm(width)
        self.hidden = nn.Linear(width, self.HIDDEN)
        self.shown = nn.Linear(self.HIDDEN, width)
        self.before_classes = nn.LayerNorm(width)
        self.classify = nn.Linear(width, CLASSES)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Logits, [batch, 10]."""
        tokens = self.embed(rows) + self.places
        tokens = tokens + self.attended(self._attend(self.before_attention(tokens)))
        hidden = torch.relu(self.hidden(self.before_hidden(tokens)))
        tokens = tokens + self.shown(hidden)
        logits: torch.Tensor = self.classify(self.before_classes(tokens).mean(1))
        return logits

    def _attend(self, tokens: torch.Tensor) -> torch.Tensor:
        # Written out: vmap has no batching rule for the CPU's fused attention, and
        # training runs all models of the fleet through one vmap.
        size = self.WIDTH // self.HEADS
        split = torch.unflatten(self.query_key_value(tokens), -1, (3, self.HEADS, size))
        query, key, value = split.permute(2, 0, 3, 1, 4).unbind(0)
        scores = torch.softmax(query @ key.transpose(-1, -2) / size**0.5, -1)
        heard: torch.Tensor = (scores @ value).transpose(1, 2).flatten(2)
        return heard


@dataclass(frozen=True, slots=True)
class Architecture:
    """A module; its one input's name and shape (without the batch); how it is trained,
    and how many seconds of a core that takes."""

    name: str
    build: Callable[[], nn.Module]
    input: str
    shape: tuple[int, ...]
    epochs: int
    rate: float
    cost: float


ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        architecture.name: architecture
        for architecture in (
            Architecture("mlp", Mlp, "pixels", (SIDE * SIDE,), 12, 4e-3, 0.1),
            Architecture("cnn", Cnn, "image", (1, SIDE, SIDE), 8, 5e-3, 0.3),
            Architecture("former", Transformer, "rows", (SIDE, SIDE), 9, 4e-3, 0.6),
        )
    }
)
OUTPUT = "logits"
