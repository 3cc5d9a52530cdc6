"""The device: which one, what of it is ours, and how many threads drive it.

Owns: these choices. Must not: measure (runtime/vram.py) or run anything
(runtime/lanes.py).
"""

import torch

from loader.quota import cores
from runtime.budget import default_reserve
from runtime.config import Settings
from runtime.loading import Unservable
from runtime.vram import Reading
from runtime.watch import Share


def share_of(settings: Settings, reading: Reading, device: torch.device) -> Share:
    """What of the device is ours."""
    reserve = settings.reserve
    if reserve is None:
        reserve = default_reserve(reading.total, device.type == "cuda")
    return Share(settings.budget, reserve)


def pick_device(name: str) -> torch.device:
    """`auto`, `cpu`, `cuda` or `cuda:N` as a device that is there, or Unservable."""
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    device = torch.device("cuda:0" if name in ("auto", "cuda") else name)
    if not torch.cuda.is_available():
        raise Unservable(
            f"--device {name}: torch sees no CUDA device here; use --device cpu, or "
            "check the driver and the container's GPU request"
        )
    if device.index >= torch.cuda.device_count():
        raise Unservable(
            f"--device {name}: there are {torch.cuda.device_count()} CUDA devices, "
            "counted from 0"
        )
    # Makes the context, so that the first reading of the gauge sees its cost.
    torch.zeros(1, device=device)
    return device


def share_cores(device: torch.device, lanes: int) -> None:
    """The lanes are the parallelism: small models gain nothing from more threads a
    call, and threads of several calls would fight for the same cores."""
    if device.type == "cpu":
        torch.set_num_threads(max(1, cores() // lanes))


def default_lanes(device: torch.device) -> int:
    """A lane for each core from two, so that a long call holds nobody up, to four; on a
    GPU two, so that one copies while the other computes (each stream has cuBLAS
    workspaces of its own: 64 MiB)."""
    return 2 if device.type == "cuda" else max(2, min(4, cores()))


def lanes_of(settings: Settings, device: torch.device) -> int:
    """As many lanes as asked for, or as suit the device."""
    return settings.lanes or default_lanes(device)
