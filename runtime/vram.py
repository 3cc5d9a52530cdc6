"""The gauge: how much of the device's memory is used, by us and by everybody.

    NvmlGauge    a GPU, by NVML; falls back on what CUDA says while NVML is away
    TorchGauge   a GPU, by cudaMemGetInfo alone: no NVML, or MPS (see `open_gauge`)
    HostGauge    no GPU: host RAM within the cgroup's limits

Owns: reading, and what to believe while there is nothing to read. Must not: decide how
much hotset may use (runtime/budget.py) or free anything. Opening a gauge may fail with
GaugeUnavailable; reading an open one never does. NVML is read once a second or so, not
for each load: the ledger knows what we hold, the gauge what others do.

A gauge has no lock: one reader at a time. A read takes microseconds, except after NVML
was lost, when it tries to start it again; so read from a thread, not the event loop.
"""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import structlog
import torch

from runtime import hostram
from runtime.nvml import GaugeUnavailable, Nvml, import_nvml, locate, memory

log = structlog.get_logger()

Measure = Callable[[], tuple[int, int]]
"""Gives (total, used) in bytes, or raises."""

# How much of the room last seen is still counted on while nobody can look.
BLIND_SHARE = 0.9


@dataclass(frozen=True, slots=True)
class Reading:
    """One look at a device, in bytes. 0 <= used <= total.

    `used`: everything anybody holds there, the driver's own bytes included.
    `ours`: what this process's allocator holds there, given out or cached.
    """

    total: int
    used: int
    ours: int

    @property
    def free(self) -> int:
        """What nobody holds."""
        return self.total - self.used

    @property
    def available(self) -> int:
        """What could be ours: free, or ours already."""
        return self.free + self.ours


class Gauge(Protocol):
    """What the runtime asks for."""

    @property
    def healthy(self) -> bool:
        """False while the reading is an estimate. A metric (nvml_up, F-04)."""
        ...

    def read(self) -> Reading:
        """How it stands now; an estimate if that cannot be seen. Never raises."""
        ...

    def close(self) -> None:
        """Let go of the library."""
        ...


class _Sight:
    """What a gauge saw last, so that a failed look never fails its caller."""

    def __init__(self, name: str, ours: Callable[[], int], measure: Measure) -> None:
        self._name = name
        self._ours = ours
        self.healthy = True
        self._last = self.look(measure)

    def look(self, measure: Measure) -> Reading:
        """A true reading, remembered; raises what `measure` raises."""
        # A load may start or end while we look. The larger of the two keeps bytes that
        # just became ours from looking as if somebody else had taken them, for which
        # idle models would be evicted.
        before = self._ours()
        total, used = measure()
        ours = max(before, self._ours())
        self._last = Reading(total, min(max(used, 0), total), ours)
        if not self.healthy:
            log.info("the gauge sees again", gauge=self._name)
        self.healthy = True
        return self._last

    def guess(self, cause: Exception, other: Reading | None = None) -> Reading:
        """A careful reading while blind: nine tenths of the room last seen, less if
        `other` knows of less. Nothing grows on it; `free` is never below 0, so that by
        itself it evicts (almost) nothing."""
        if self.healthy:
            log.warning("the gauge is blind", gauge=self._name, cause=repr(cause))
        self.healthy = False
        last, ours = self._last, self._ours()
        room = int(BLIND_SHARE * last.available)
        if other is not None:
            room = min(room, other.available)
        free = min(max(room - ours, 0), last.total)
        return Reading(last.total, last.total - free, ours)


class TorchGauge:
    """A GPU through the CUDA runtime of this process. Under MPS it is the only one to
    see our share of the card; it costs a CUDA context, which we have anyway."""

    def __init__(
        self, ours: Callable[[], int], mem_get_info: Callable[[], tuple[int, int]]
    ) -> None:
        self._mem_get_info = mem_get_info
        try:
            self._sight = _Sight("cuda", ours, self._measure)
        except (RuntimeError, AssertionError) as error:  # the latter: a CPU build
            raise GaugeUnavailable(f"CUDA cannot tell its memory: {error}") from error

    @property
    def healthy(self) -> bool:
        return self._sight.healthy

    def read(self) -> Reading:
        try:
            return self._sight.look(self._measure)
        except RuntimeError as error:  # torch's kind, of every CUDA error
            return self._sight.guess(error)

    def close(self) -> None:
        pass

    def _measure(self) -> tuple[int, int]:
        free, total = self._mem_get_info()
        return total, total - free


class NvmlGauge:
    """A GPU, or the MIG slice of one that CUDA sees, through NVML.

    `find` gives the device's handle (runtime/nvml.py, `locate`); it is asked again
    whenever NVML has to be started anew, since a handle dies with the session. While
    NVML is away, `fallback` is read, and believed for the worse only.
    """

    def __init__(
        self,
        nvml: Nvml,
        find: Callable[[Nvml], object],
        ours: Callable[[], int],
        fallback: Gauge | None = None,
    ) -> None:
        self._nvml = nvml
        self._find = find
        self._fallback = fallback
        self._handle: object | None = None
        self._in_session = False
        try:
            self._sight = _Sight("nvml", ours, self._measure)
        except nvml.NVMLError as error:
            self.close()
            raise GaugeUnavailable(
                f"NVML does not answer ({error}): is the driver loaded, and the GPU "
                "given to this container? Else serve with --device cpu"
            ) from error
        except GaugeUnavailable:
            self.close()
            raise

    @property
    def healthy(self) -> bool:
        return self._sight.healthy

    def read(self) -> Reading:
        try:
            return self._sight.look(self._measure)
        except (self._nvml.NVMLError, GaugeUnavailable) as error:
            # The driver may have been reloaded or the container's devices re-synced:
            # neither session nor handle can be trusted, so the next read starts over.
            self.close()
            other = self._fallback.read() if self._fallback is not None else None
            return self._sight.guess(error, other)

    def close(self) -> None:
        """End the NVML session; a later read begins one."""
        self._handle = None
        # NVML counts its users: one shutdown too many would end somebody else's.
        if self._in_session:
            self._in_session = False
            with contextlib.suppress(self._nvml.NVMLError):
                self._nvml.nvmlShutdown()

    def _measure(self) -> tuple[int, int]:
        if self._handle is None:
            self._nvml.nvmlInit()
            self._in_session = True
            self._handle = self._find(self._nvml)
        return memory(self._nvml, self._handle)


class HostGauge:
    """Host RAM, for `--device cpu`. `ours`: the bytes our models hold."""

    def __init__(
        self, ours: Callable[[], int], measure: Measure = hostram.measure
    ) -> None:
        self._measure = measure
        try:
            self._sight = _Sight("host", ours, measure)
        except (OSError, ValueError, LookupError) as error:
            raise GaugeUnavailable(f"the host's memory is unknown: {error}") from error

    @property
    def healthy(self) -> bool:
        return self._sight.healthy

    def read(self) -> Reading:
        try:
            return self._sight.look(self._measure)
        except (OSError, ValueError, LookupError) as error:
            return self._sight.guess(error)

    def close(self) -> None:
        pass


def open_gauge(
    device: torch.device,
    environ: Mapping[str, str],
    ours: Callable[[], int] | None = None,
    nvml: Nvml | None = None,
) -> Gauge:
    """The gauge for a device. `ours` defaults to torch's allocator, which a CPU has
    not: there it must be given. GaugeUnavailable says what an operator can do."""
    if device.type != "cuda":
        if ours is None:
            raise TypeError("a CPU has no allocator to ask: give `ours`")
        return HostGauge(ours)
    index = device.index or 0
    ours = ours or (lambda: torch.cuda.memory_reserved(index))
    by_cuda = TorchGauge(ours, lambda: torch.cuda.mem_get_info(index))
    if "CUDA_MPS_PIPE_DIRECTORY" in environ:
        # The MPS daemon caps each client; NVML shows the whole card all the same.
        return by_cuda
    uuid = str(torch.cuda.get_device_properties(index).uuid)
    try:
        return NvmlGauge(
            nvml or import_nvml(),
            lambda nvml: locate(nvml, index, environ, uuid),
            ours,
            fallback=by_cuda,
        )
    except GaugeUnavailable as error:
        log.warning("no NVML, reading CUDA instead", cause=str(error))
        return by_cuda
