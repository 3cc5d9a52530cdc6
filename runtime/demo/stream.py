"""The traffic as data: which model is asked for which image, in which order.

Owns: the draw, and the files that carry it to the traffic process and the answers
back. Must not: import torch, or send anything.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

ZIPF = 0.9
"""The exponent: popularity of the r-th model is r ** -0.9, as web traffic has it."""

Indices = NDArray[np.int64]
Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Codes = NDArray[np.int8]

TEMPERATURES = ("hit", "wait", "miss")
UNKNOWN = -1
"""In `Answers.temperature`: the server did not say."""

ANSWERED = 0
"""In `Answers.code`: OK. Above: the gRPC status code of a failed call."""

MALFORMED = -2
"""In `Answers.code`: the call did not fail, but what came is not ten scores."""


@dataclass(frozen=True, slots=True)
class Target:
    """How to ask one model: its name, its input's name and shape without the batch."""

    name: str
    input: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Stream:
    """What to ask, in order: request i shows image `image[i]` to model `model[i]`.

    The last `alone` requests are sent one at a time: what they take is what a request
    takes, without the others that it would wait for.
    """

    targets: tuple[Target, ...]
    images: Floats
    model: Indices
    image: Indices
    alone: int = 0

    def __len__(self) -> int:
        return len(self.model)

    @property
    def crowded(self) -> int:
        """How many come before those that are sent alone."""
        return len(self) - self.alone

    def write(self, directory: Path) -> None:
        """Lay it down for the traffic process."""
        targets = json.dumps([asdict(target) for target in self.targets])
        (directory / "targets.json").write_text(targets)
        np.savez(
            directory / "stream.npz",
            images=self.images,
            model=self.model,
            image=self.image,
            alone=self.alone,
        )

    @classmethod
    def read(cls, directory: Path) -> "Stream":
        """What `write` laid down."""
        targets = tuple(
            Target(each["name"], each["input"], tuple(each["shape"]))
            for each in json.loads((directory / "targets.json").read_text())
        )
        with np.load(directory / "stream.npz", allow_pickle=False) as arrays:
            return cls(
                targets,
                arrays["images"],
                arrays["model"],
                arrays["image"],
                int(arrays["alone"]),
            )


@dataclass(frozen=True, slots=True)
class Answers:
    """What came back, in the order of the stream: row i answers request i.

    `seconds` from the request to its answer, `at` from the stream's start to it.
    """

    scores: Floats
    seconds: Doubles
    at: Doubles
    temperature: Codes
    code: Codes

    @classmethod
    def none_yet(cls, requests: int, classes: int) -> "Answers":
        """Room for so many; nothing answered."""
        return cls(
            np.zeros((requests, classes), np.float32),
            np.zeros(requests, np.float64),
            np.zeros(requests, np.float64),
            np.full(requests, UNKNOWN, np.int8),
            np.full(requests, UNKNOWN, np.int8),
        )

    def write(self, directory: Path) -> None:
        """Lay them down for the parent."""
        np.savez(
            directory / "answers.npz",
            scores=self.scores,
            seconds=self.seconds,
            at=self.at,
            temperature=self.temperature,
            code=self.code,
        )

    @classmethod
    def read(cls, directory: Path) -> "Answers":
        """What `write` laid down."""
        with np.load(directory / "answers.npz", allow_pickle=False) as arrays:
            return cls(
                arrays["scores"],
                arrays["seconds"],
                arrays["at"],
                arrays["temperature"],
                arrays["code"],
            )


def draw(
    targets: Sequence[Target], images: Floats, requests: int, seed: int, alone: int = 0
) -> Stream:
    """A Zipf stream over the targets; the same one for the same arguments.

    Popularity is dealt out at random, so that the hot models are of every kind.
    """
    dice = np.random.default_rng(seed)
    weights = np.arange(1, len(targets) + 1, dtype=np.float64) ** -ZIPF
    ranked = dice.permutation(len(targets))
    ranks = dice.choice(len(targets), size=requests, p=weights / weights.sum())
    shown = dice.integers(len(images), size=requests)
    return Stream(tuple(targets), images, ranked[ranks], shown, alone)
