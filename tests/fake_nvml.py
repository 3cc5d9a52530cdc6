"""A host with GPUs as NVML shows it, for tests; satisfies `runtime.nvml.Nvml`."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace

from runtime.nvml import MemoryInfo, Nvml

GIB = 1024**3


class FakeNvmlError(Exception):
    """What the fake raises, by the names of NVML's own errors."""


@dataclass
class Slice:
    """A MIG device. `held`: bytes by holder, as for a card."""

    uuid: str
    total: int = 10 * GIB
    held: dict[str, int] = field(default_factory=dict)
    readable: bool = True
    reserved: int = 0

    @property
    def free(self) -> int:
        return self.total - self.reserved - sum(self.held.values())


@dataclass
class Card(Slice):
    """A GPU. `slices` not empty: it is in MIG mode, as `nvidia-smi -L` would show.
    None in `slices` is a place where another container's slice sits."""

    total: int = 80 * GIB
    slices: list[Slice | None] = field(default_factory=list)
    knows_mig: bool = True


class FakeNvml:
    """`session`: handles die with it, as the driver's do. `broken`: what every call
    answers while the driver is away. `v2_used_has_reserved`: drivers and documents
    differ on it."""

    NVMLError = FakeNvmlError
    nvmlMemory_v2 = 0x02000028

    def __init__(self, *cards: Card) -> None:
        self.cards = cards
        self.broken = ""
        self.speaks_v2 = True
        self.v2_used_has_reserved = True
        self.session = 0
        self.users = 0
        self.versions: list[int | None] = []

    def nvmlInit(self) -> None:
        self._alive(started=False)
        self.users += 1

    def nvmlShutdown(self) -> None:
        if self.users == 0:
            raise FakeNvmlError("Uninitialized")
        self.users -= 1

    def restart_driver(self) -> None:
        """Forget every user and handle."""
        self.session += 1
        self.users = 0

    def nvmlDeviceGetCount(self) -> int:
        self._alive()
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> object:
        self._alive()
        if index >= len(self.cards):
            raise FakeNvmlError("Invalid Argument")
        return (self.session, self.cards[index])

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> object:
        self._alive()
        slices = [s for card in self.cards for s in card.slices if s]
        for device in (*self.cards, *slices):
            if device.uuid == uuid:
                return (self.session, device)
        raise FakeNvmlError("Not Found")

    def nvmlDeviceGetUUID(self, handle: object) -> str:
        return self._device(handle).uuid

    def nvmlDeviceGetMigMode(self, device: object) -> Sequence[int]:
        card = self._device(device)
        if not isinstance(card, Card) or not card.knows_mig:
            raise FakeNvmlError("Not Supported")
        return [int(bool(card.slices))] * 2

    def nvmlDeviceGetMaxMigDeviceCount(self, device: object) -> int:
        card = self._device(device)
        if not isinstance(card, Card) or not card.knows_mig:
            raise FakeNvmlError("Not Supported")
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, device: object, index: int) -> object:
        card = self._device(device)
        assert isinstance(card, Card)
        found = card.slices[index] if index < len(card.slices) else None
        if found is None:
            raise FakeNvmlError("Not Found")
        return (self.session, found)

    def nvmlDeviceGetMemoryInfo(
        self, handle: object, version: int | None = None
    ) -> MemoryInfo:
        device = self._device(handle)
        if version is not None and not self.speaks_v2:
            raise FakeNvmlError("Function Not Found")
        if not device.readable:
            raise FakeNvmlError("Insufficient Permissions")
        self.versions.append(version)
        used = device.total - device.free
        if version is not None and not self.v2_used_has_reserved:
            used -= device.reserved
        return SimpleNamespace(total=device.total, free=device.free, used=used)

    def _alive(self, started: bool = True) -> None:
        if self.broken:
            raise FakeNvmlError(self.broken)
        if started and self.users == 0:
            raise FakeNvmlError("Uninitialized")

    def _device(self, handle: object) -> Slice:
        self._alive()
        assert isinstance(handle, tuple)
        session, device = handle
        if session != self.session:
            raise FakeNvmlError("Invalid Argument")
        assert isinstance(device, Slice)
        return device


class FakeNvmlOfOld(FakeNvml):
    """A binding from before version 2 of the memory structure."""

    nvmlMemory_v2 = None  # type: ignore[assignment]

    def nvmlDeviceGetMemoryInfo(  # type: ignore[override]
        self, handle: object
    ) -> MemoryInfo:
        return super().nvmlDeviceGetMemoryInfo(handle)


def as_nvml(fake: FakeNvml) -> Nvml:
    """Says to mypy that the fake is one."""
    return fake
