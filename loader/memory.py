"""Device memory for weights: one flat buffer a model.

Owns: taking buffers on one device and writing bytes into them. Must not: know what the
bytes mean, or how much anybody may take (eviction/ledger.py).
"""

from typing import Protocol

import numpy as np
import torch

from loader.errors import DeviceFull

STAGING = 8 << 20
"""Bytes of pinned memory a write to a GPU goes through at a time."""


class DeviceMemory(Protocol):
    """Where weights live. Its methods run in the loader's threads."""

    @property
    def device(self) -> torch.device:
        """The device the buffers are on."""
        ...

    def take(self, nbytes: int) -> torch.Tensor:
        """A uint8 buffer of `nbytes`, uninitialised. Raises DeviceFull."""
        ...

    def write(self, buffer: torch.Tensor, at: int, data: memoryview) -> None:
        """Copy `data` to `buffer[at:]`; returns when it is there."""
        ...


class HostMemory:
    """`--device cpu`: host RAM is the device."""

    device = torch.device("cpu")

    def take(self, nbytes: int) -> torch.Tensor:
        """See DeviceMemory."""
        try:
            return torch.empty(nbytes, dtype=torch.uint8)
        except RuntimeError as error:
            # The CPU allocator raises a plain RuntimeError; the text is its only sign.
            if "allocate memory" not in str(error):
                raise
            raise DeviceFull("the host has no memory left for this model") from error

    def write(self, buffer: torch.Tensor, at: int, data: memoryview) -> None:
        """See DeviceMemory. numpy lets go of the interpreter lock while it copies."""
        source = np.frombuffer(data, dtype=np.uint8)
        np.copyto(buffer.numpy()[at : at + len(source)], source)


class CudaMemory:
    """`--device cuda:N`: buffers of torch's allocator, filled through pinned memory."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def take(self, nbytes: int) -> torch.Tensor:
        """See DeviceMemory."""
        try:
            return torch.empty(nbytes, dtype=torch.uint8, device=self.device)
        except torch.OutOfMemoryError as error:
            raise DeviceFull("the device has no memory left for this model") from error

    def write(self, buffer: torch.Tensor, at: int, data: memoryview) -> None:
        """See DeviceMemory. On the calling thread's own stream, in pinned pieces."""
        source = np.frombuffer(data, dtype=np.uint8)
        staging = torch.empty(min(STAGING, len(source)), dtype=torch.uint8).pin_memory()
        for start in range(0, len(source), STAGING):
            piece = source[start : start + STAGING]
            staging.numpy()[: len(piece)] = piece
            there = buffer[at + start : at + start + len(piece)]
            there.copy_(staging[: len(piece)], non_blocking=True)
            torch.cuda.current_stream(self.device).synchronize()


def memory_on(device: torch.device) -> DeviceMemory:
    """The memory of a device."""
    return CudaMemory(device) if device.type == "cuda" else HostMemory()
