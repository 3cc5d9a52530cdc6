"""The hit path's model as files that every contender can read.

Owns: `mlp.npz` for the peers' environments, a store for hotset. Must not: measure.
"""

from pathlib import Path

import numpy as np

from bench.floor_server import mlp
from bench.traffic import one_model

ARRAYS = "mlp.npz"
STORE = "store"
SERVERS = Path(__file__).parent / "servers"
"""Code that runs in the peers' environments."""


def write(folder: Path) -> None:
    """Both forms, the same weights."""
    one_model(folder / STORE)
    state = {name: tensor.numpy() for name, tensor in mlp().state_dict().items()}
    np.savez(folder / ARRAYS, **state)
