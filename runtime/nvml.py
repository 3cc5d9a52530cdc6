"""Which card NVML means when CUDA says "device N", and what is on it.

Owns: the few NVML functions hotset uses, as a Protocol (tests bring a fake), and the
way from a CUDA index to an NVML handle. Must not: remember readings or decide what to
do when NVML is gone (runtime/vram.py), nor ask NVML about processes: in a container
its process ids are the host's, so per-process numbers are never ours to match.

CUDA and NVML number cards differently: CUDA by speed and after CUDA_VISIBLE_DEVICES,
NVML by bus position and over everything the container sees. Names do not move, so a
UUID is used wherever one can be had.

On a card cut by MIG the index names the *parent*, whose memory is the sum of all
slices and mostly not ours to read; a CUDA process sees exactly one slice.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol, cast


class MemoryInfo(Protocol):
    """Bytes, as either version of the memory structure has them."""

    @property
    def total(self) -> int:
        """All of the card or slice."""
        ...

    @property
    def free(self) -> int:
        """What can still be allocated."""
        ...


class Nvml(Protocol):
    """What hotset uses of `pynvml` (nvidia-ml-py). A handle is opaque."""

    @property
    def NVMLError(self) -> type[Exception]: ...

    def nvmlInit(self) -> None: ...

    def nvmlShutdown(self) -> None: ...

    def nvmlDeviceGetCount(self) -> int: ...

    def nvmlDeviceGetHandleByIndex(self, index: int) -> object: ...

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> object: ...

    def nvmlDeviceGetUUID(self, handle: object) -> str: ...

    def nvmlDeviceGetMigMode(self, device: object) -> Sequence[int]: ...

    def nvmlDeviceGetMaxMigDeviceCount(self, device: object) -> int: ...

    def nvmlDeviceGetMigDeviceHandleByIndex(
        self, device: object, index: int
    ) -> object: ...

    def nvmlDeviceGetMemoryInfo(
        self, handle: object, version: int | None = None
    ) -> MemoryInfo: ...


class GaugeUnavailable(Exception):
    """The memory of a device cannot be measured. For the operator at start-up."""


def import_nvml() -> Nvml:
    """The real NVML binding, not yet initialised."""
    try:
        import pynvml
    except ImportError as error:
        raise GaugeUnavailable(
            "NVML's Python binding is missing: install nvidia-ml-py, "
            "or serve with --device cpu"
        ) from error
    return cast(Nvml, pynvml)


def memory(nvml: Nvml, handle: object) -> tuple[int, int]:
    """(total, used) of a handle, in bytes; raises nvml.NVMLError.

    `used` is taken as total - free, never as NVML's own `used`: versions 1 and 2 and
    drivers before and after R510 disagree on whether that holds the driver's reserved
    bytes. All agree on `free`, and reserved bytes are as good as used to us.
    """
    info = _memory_info(nvml, handle)
    return info.total, info.total - info.free


def _memory_info(nvml: Nvml, handle: object) -> MemoryInfo:
    # Bindings before 11.510 have no version 2, drivers of that age refuse it.
    version: int | None = getattr(nvml, "nvmlMemory_v2", None)
    if version is not None:
        try:
            return nvml.nvmlDeviceGetMemoryInfo(handle, version=version)
        except nvml.NVMLError:
            pass  # version 1 is asked next; if NVML itself is gone, that raises
    return nvml.nvmlDeviceGetMemoryInfo(handle)


def locate(
    nvml: Nvml, device: int, environ: Mapping[str, str], cuda_uuid: str = ""
) -> object:
    """The handle of CUDA device `device`: a card, or the MIG slice that CUDA sees.

    `cuda_uuid`: what CUDA itself calls the device, without "GPU-", where that is known;
    it is surer than any index. Raises GaugeUnavailable, or nvml.NVMLError.
    """
    visible = _visible(environ, "CUDA_VISIBLE_DEVICES")
    if visible is not None and device >= len(visible):
        raise GaugeUnavailable(
            f"cuda:{device} does not exist: CUDA_VISIBLE_DEVICES names "
            f"{len(visible)} device(s)"
        )
    name = visible[device] if visible is not None else ""
    if name.startswith("MIG-"):
        return _by_uuid(nvml, name)
    if name.startswith("GPU-"):
        card = _by_uuid(nvml, name)
    else:
        index = int(name) if name else device
        card = _by_cuda(nvml, cuda_uuid) or nvml.nvmlDeviceGetHandleByIndex(index)
    if not _is_mig_parent(nvml, card):
        return card
    # Of what the container runtime gave us only UUIDs mean anything in here: its
    # indices are the host's.
    granted = _visible(environ, "NVIDIA_VISIBLE_DEVICES") or []
    slices = [name for name in granted if name.startswith("MIG-")]
    return _by_uuid(nvml, slices[0]) if slices else _first_slice(nvml, card)


def _visible(environ: Mapping[str, str], variable: str) -> list[str] | None:
    """The names in a list of visible devices; None if it is not set.

    CUDA stops at the first name it cannot read: "0,-1,1" shows one device.
    """
    if variable not in environ:
        return None
    names: list[str] = []
    for name in environ[variable].split(","):
        name = name.strip()
        if not (name.isdecimal() or name.startswith(("GPU-", "MIG-"))):
            break
        names.append(name)
    return names


def _by_uuid(nvml: Nvml, uuid: str) -> object:
    try:
        return nvml.nvmlDeviceGetHandleByUUID(uuid)
    except nvml.NVMLError as error:
        # CUDA also takes the beginning of a UUID; NVML wants it whole.
        matches = [h for h in _everything(nvml) if _starts(nvml, h, uuid)]
        if len(matches) != 1:
            raise GaugeUnavailable(
                f"NVML knows {len(matches)} devices whose UUID begins with {uuid}"
            ) from error
        return matches[0]


def _by_cuda(nvml: Nvml, cuda_uuid: str) -> object | None:
    """None if CUDA's word for the device means nothing to NVML. For a slice, drivers
    differ on whether CUDA says the slice's UUID or its card's; either will do."""
    for prefix in ("MIG-", "GPU-") if cuda_uuid else ():
        try:
            return nvml.nvmlDeviceGetHandleByUUID(prefix + cuda_uuid)
        except nvml.NVMLError:
            continue
    return None


def _starts(nvml: Nvml, handle: object, prefix: str) -> bool:
    return nvml.nvmlDeviceGetUUID(handle).lower().startswith(prefix.lower())


def _everything(nvml: Nvml) -> Iterator[object]:
    """Every card in sight, each followed by its slices."""
    for index in range(nvml.nvmlDeviceGetCount()):
        card = nvml.nvmlDeviceGetHandleByIndex(index)
        yield card
        yield from _slices(nvml, card)


def _slices(nvml: Nvml, card: object) -> Iterator[object]:
    try:
        most = nvml.nvmlDeviceGetMaxMigDeviceCount(card)
    except nvml.NVMLError:
        return  # a card that knows no MIG
    for index in range(most):
        try:
            yield nvml.nvmlDeviceGetMigDeviceHandleByIndex(card, index)
        except nvml.NVMLError:
            continue  # the count is of places; most are empty or another container's


def _is_mig_parent(nvml: Nvml, card: object) -> bool:
    try:
        current, *_ = nvml.nvmlDeviceGetMigMode(card)
    except nvml.NVMLError:
        current = 0  # too old for MIG, or not ours to ask: the memory will tell
    if current:
        return True
    try:
        memory(nvml, card)
    except nvml.NVMLError:
        return any(True for _ in _slices(nvml, card))
    return False


def _first_slice(nvml: Nvml, card: object) -> object:
    """CUDA shows a process the first slice it may use, and no other."""
    for candidate in _slices(nvml, card):
        try:
            memory(nvml, candidate)
        except nvml.NVMLError:
            continue
        return candidate
    raise GaugeUnavailable(
        "the GPU is in MIG mode and no slice of it can be read: set "
        "CUDA_VISIBLE_DEVICES to the slice's UUID (nvidia-smi -L shows MIG-...)"
    )
