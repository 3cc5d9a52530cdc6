"""What the demo was asked for, and where its things lie.

Owns: the options as one value. Must not: act on them.
"""

from dataclasses import dataclass
from pathlib import Path

WORK = Path(".demo")
"""Where everything of the demo lies: its store, the last run's stream and log."""


@dataclass(frozen=True, slots=True)
class Options:
    """What `hotset demo` was asked for. `budget` empty: a quarter of the models."""

    store: str
    models: int
    requests: int
    budget: str
    concurrency: int
    seed: int
    fresh: bool
    keep: bool
    device: str

    @property
    def remote(self) -> bool:
        """True if the store is a bucket, which is filled from the local one."""
        return "://" in self.store and not self.store.startswith("file://")

    @property
    def folder(self) -> Path:
        """Where the store is made."""
        if self.remote:
            return WORK / "store"
        return Path(self.store.removeprefix("file://")).expanduser()
