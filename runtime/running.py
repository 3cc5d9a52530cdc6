"""Who runs models on the device, and who finds out how they run best.

Owns: making them as the settings say, and taking them apart in order. Must not: hold
logic of its own.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from loader.tape import CudaDeck
from runtime.config import Settings
from runtime.cross import Cross
from runtime.devices import lanes_of
from runtime.lanes import Lanes
from runtime.recordings import Recordings

SLOTS_PART = 4
"""Of the reserve, a quarter may be weights that recordings run over: activations and
the workspaces of kernels need the most of it."""


@dataclass(frozen=True, slots=True)
class Running:
    """`cross`: models that share calls; `recordings`: calls that a GPU plays."""

    lanes: Lanes
    cross: Cross | None = None
    recordings: Recordings | None = None


@contextlib.contextmanager
def running(
    settings: Settings,
    device: torch.device,
    reserve: int,
    on_lost: Callable[[], None],
) -> Iterator[Running]:
    """Their threads, for as long as the block. `reserve`: bytes of the device that are
    not for weights."""
    with contextlib.ExitStack() as stack:
        lanes = Lanes(device, lanes_of(settings, device), on_lost)
        stack.callback(lanes.close)
        cross = Cross() if settings.cross_batching else None
        if cross is not None:
            stack.callback(cross.close)
        recordings = None
        if device.type == "cuda" and settings.cuda_graphs == "auto":
            recordings = Recordings(CudaDeck(device), reserve // SLOTS_PART)
            stack.callback(recordings.close)
        yield Running(lanes, cross, recordings)
