"""The model that every server holds: the same weights, one thread a call.

Owns: reading the weights that the bench wrote, as plain arrays. Must not: import
anything of ours: it runs in the environment of a peer, which has torch and numpy.
"""

from pathlib import Path

import numpy as np
import torch
from torch import nn


def load(path: str | Path) -> nn.Sequential:
    """The MLP whose state an .npz holds; no pickle."""
    torch.set_num_threads(1)
    with np.load(path, allow_pickle=False) as arrays:
        state = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    layers: list[nn.Module] = []
    for name in sorted(name for name in state if name.endswith(".weight")):
        wide, narrow = state[name].shape
        layers += [nn.Linear(narrow, wide), nn.ReLU()]
    model = nn.Sequential(*layers[:-1])
    model.load_state_dict(state)
    return model.eval()
