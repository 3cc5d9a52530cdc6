"""Everybody who loads in `bench.vram`, behind one call: a file in, tensors on a device.

Owns: how each library is told of a device, at its defaults. Must not: measure (the
clock of bench/load_worker.py waits for the device).

    pinned copy              no library: one copy from locked host memory, the ceiling
    hotset host tier         from bytes that were on the device before, as evicted
    hotset                   from the file, every digest checked; nobody else checks one
    fastsafetensors (kept)   with one loader for all files, so that its locked memory is
                             got once; its documented use makes one a load

A library's own memory stays with it from load to load, as torch's allocator keeps it.
"""

from collections.abc import Callable

import torch

from bench.load_peers import HOTSET, Hotset, Load, Target, Tensors

CEILING, WARM = "pinned copy", "hotset host tier"
HOST_CACHE = 1_400_000_000
"""Bytes of the host tier: room for all four models at once."""

Maker = Callable[[], Load]


def makers(folder: str, device: torch.device) -> dict[str, Maker]:
    """Everybody, made when first needed. Those on top are compared with each other."""
    return {
        CEILING: lambda: Ceiling(device),
        WARM: lambda: HostTier(folder, device, HOST_CACHE),
        HOTSET: lambda: Hotset(folder, device),
        "safetensors load_file": lambda: _load_file(device),
        "safetensors mmap + to": lambda: _mmap_to(device),
        "fastsafetensors": lambda: _fastsafetensors(device, kept=False),
        "fastsafetensors (kept)": lambda: _fastsafetensors(device, kept=True),
        "InstantTensor": lambda: _instanttensor(device),
        "Run:ai model streamer": lambda: _runai(device),
    }


class Ceiling:
    """As many bytes as the file has, from locked memory that was touched before.
    `seconds`: of the last copy as the device counts them, without the call's own; None
    on a CPU, where it is a memcpy."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pair: tuple[torch.Tensor, torch.Tensor] | None = None
        self.seconds: float | None = None

    def __call__(self, target: Target) -> Tensors:
        """Copy; returns when it is there."""
        source, there = self._of(target.nbytes)
        if self._device.type == "cpu":
            there.copy_(source)
            return {}
        began = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        ended = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        began.record()
        there.copy_(source, non_blocking=True)
        ended.record()
        ended.synchronize()
        self.seconds = began.elapsed_time(ended) / 1e3
        return {}

    def _of(self, nbytes: int) -> tuple[torch.Tensor, torch.Tensor]:
        if self._pair is None or self._pair[0].numel() != nbytes:
            self._pair = None
            locked = self._device.type == "cuda"
            source = torch.empty(nbytes, dtype=torch.uint8, pin_memory=locked)
            source.fill_(1)
            there = torch.zeros(nbytes, dtype=torch.uint8, device=self._device)
            self._pair = source, there
        return self._pair


class HostTier(Hotset):
    """Loads that the host tier serves. The first one of a file brings it there."""

    def __call__(self, target: Target) -> Tensors:
        """See Hotset. Raises RuntimeError if it came from elsewhere."""
        tensors = super().__call__(target)
        if self.tier != "host":
            del tensors
            self.release()
            tensors = super().__call__(target)
        if self.tier != "host":
            raise RuntimeError(f"it came from the {self.tier}, not from the host tier")
        return tensors


def _load_file(device: torch.device) -> Load:
    from safetensors.torch import load_file

    def load(target: Target) -> Tensors:
        tensors = load_file(target.local, device=str(device))
        if device.type == "cpu":  # a mapping: so far nothing has been read
            return {name: tensor.clone() for name, tensor in tensors.items()}
        return dict(tensors)

    return load


def _mmap_to(device: torch.device) -> Load:
    from safetensors.torch import load_file

    def load(target: Target) -> Tensors:
        mapped = load_file(target.local)
        return {name: tensor.to(device, copy=True) for name, tensor in mapped.items()}

    return load


def _fastsafetensors(device: torch.device, kept: bool) -> Load:
    from fastsafetensors import SafeTensorsFileLoader

    def made() -> SafeTensorsFileLoader:
        return SafeTensorsFileLoader(None, device=str(device), nogds=True)

    keeper = made() if kept else None

    def load(target: Target) -> Tensors:
        loader = keeper or made()
        loader.add_filenames({0: [target.local]})
        buffers = loader.copy_files_to_device()
        # Its tensors own the memory together: they outlive buffer and loader.
        tensors = {key: buffers.get_tensor(key) for key in loader.get_keys()}
        buffers.close()
        loader.reset() if kept else loader.close()
        return tensors

    return load


def _instanttensor(device: torch.device) -> Load:
    from instanttensor import safe_open

    def load(target: Target) -> Tensors:
        with safe_open(target.local, framework="pt", device=device) as file:
            return dict(file.tensors())

    return load


def _runai(device: torch.device) -> Load:
    from runai_model_streamer import SafetensorsStreamer

    def load(target: Target) -> Tensors:
        with SafetensorsStreamer() as streamer:
            streamer.stream_file(target.local, device=str(device))
            return dict(streamer.get_tensors())

    return load
