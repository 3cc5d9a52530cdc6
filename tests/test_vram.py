"""The gauge and the budget, over a fake NVML, a fake host and a fake CUDA."""

import inspect
import subprocess
import sys
from collections.abc import Callable, Mapping
from decimal import Decimal
from pathlib import Path

import pynvml
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from runtime import hostram
from runtime.budget import (
    GIB,
    MIB,
    Budget,
    BudgetRefused,
    Tide,
    capacity,
    default_reserve,
    parse_budget,
)
from runtime.nvml import GaugeUnavailable, Nvml, import_nvml, locate, memory
from runtime.vram import (
    Gauge,
    HostGauge,
    NvmlGauge,
    Reading,
    TorchGauge,
    open_gauge,
)
from tests.fake_nvml import Card, FakeNvml, FakeNvmlOfOld, Slice

ROOT = Path(__file__).parents[1]

A100 = "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6"
H200 = "GPU-20bed2f5-819b-69ad-8d42-d3e1446080c1"
MIG_A = "MIG-90443af0-2fe6-57fb-86fe-54186d5a6581"
MIG_B = "MIG-c78853aa-0fc0-5838-b9f6-07d024b1bb01"


def gauge_of(
    nvml: FakeNvml,
    ours: Callable[[], int] = lambda: 0,
    device: int = 0,
    environ: Mapping[str, str] | None = None,
    cuda_uuid: str = "",
    fallback: Gauge | None = None,
) -> NvmlGauge:
    def find(nvml: Nvml) -> object:
        return locate(nvml, device, environ or {}, cuda_uuid)

    return NvmlGauge(nvml, find, ours, fallback)


class FakeCuda:
    """cudaMemGetInfo over a card."""

    def __init__(self, card: Card) -> None:
        self.card = card
        self.error: Exception | None = None

    def mem_get_info(self) -> tuple[int, int]:
        if self.error:
            raise self.error
        return self.card.free, self.card.total


# Reading a GPU


def test_a_reading_counts_everybody_and_knows_what_is_ours() -> None:
    card = Card(H200, 100 * GIB, {"us": 30 * GIB, "them": 20 * GIB})
    reading = gauge_of(FakeNvml(card), ours=lambda: card.held["us"]).read()
    assert reading == Reading(total=100 * GIB, used=50 * GIB, ours=30 * GIB)
    assert reading.free == 50 * GIB
    assert reading.available == 80 * GIB


@pytest.mark.parametrize("v2_used_has_reserved", [True, False])
@pytest.mark.parametrize("speaks_v2", [True, False])
def test_every_version_gives_the_same_reading_reserved_bytes_counted_as_used(
    speaks_v2: bool, v2_used_has_reserved: bool
) -> None:
    card = Card(H200, 80 * GIB, {"them": 10 * GIB}, reserved=GIB)
    nvml = FakeNvml(card)
    nvml.speaks_v2 = speaks_v2
    nvml.v2_used_has_reserved = v2_used_has_reserved
    assert gauge_of(nvml).read() == Reading(80 * GIB, 11 * GIB, 0)
    assert set(nvml.versions) == {nvml.nvmlMemory_v2 if speaks_v2 else None}


def test_a_binding_without_version_2_is_asked_in_its_own_words() -> None:
    nvml = FakeNvmlOfOld(Card(H200, 80 * GIB, {"them": GIB}))
    assert gauge_of(nvml).read() == Reading(80 * GIB, GIB, 0)


def test_the_fake_and_our_protocol_say_what_the_real_binding_says() -> None:
    real = import_nvml()
    assert real is pynvml
    assert issubclass(real.NVMLError, Exception)
    assert FakeNvml.nvmlMemory_v2 == pynvml.nvmlMemory_v2
    names = [name for name in vars(Nvml) if name.startswith("nvml")]
    assert len(names) == 10
    for name in names:
        # pynvml wraps some functions without keeping their signature
        function = inspect.unwrap(getattr(pynvml, name))
        theirs = list(inspect.signature(function).parameters)
        ours = list(inspect.signature(getattr(Nvml, name)).parameters)[1:]
        fakes = list(inspect.signature(getattr(FakeNvml, name)).parameters)[1:]
        assert fakes == ours
        if theirs != ["args", "kwds"]:
            assert theirs == ours, name


# Which device


def two_cards() -> FakeNvml:
    return FakeNvml(Card(A100, 40 * GIB), Card(H200, 141 * GIB))


@pytest.mark.parametrize(
    ("device", "environ", "cuda_uuid", "total"),
    [
        (0, {}, "", 40),
        (1, {}, "", 141),
        (0, {"CUDA_VISIBLE_DEVICES": "1"}, "", 141),
        (1, {"CUDA_VISIBLE_DEVICES": "1,0"}, "", 40),
        (0, {"CUDA_VISIBLE_DEVICES": H200}, "", 141),
        (1, {"CUDA_VISIBLE_DEVICES": f"{H200}, {A100}"}, "", 40),
        (0, {"CUDA_VISIBLE_DEVICES": "GPU-20BED2F5"}, "", 141),
        # CUDA puts the fastest card first, NVML the one with the lowest bus number.
        (0, {}, H200.removeprefix("GPU-"), 141),
        (0, {"CUDA_VISIBLE_DEVICES": "0"}, H200.removeprefix("GPU-"), 141),
        # A word that NVML does not know leaves us with the index.
        (1, {}, "00000000-0000-0000-0000-000000000000", 141),
        (0, {"NVIDIA_VISIBLE_DEVICES": "all"}, "", 40),
        # Its indices are the host's; in here there is only one numbering, ours.
        (0, {"NVIDIA_VISIBLE_DEVICES": "1"}, "", 40),
    ],
)
def test_of_several_cards_the_one_that_cuda_means(
    device: int, environ: dict[str, str], cuda_uuid: str, total: int
) -> None:
    gauge = gauge_of(two_cards(), device=device, environ=environ, cuda_uuid=cuda_uuid)
    assert gauge.read().total == total * GIB


@pytest.mark.parametrize(
    ("device", "visible", "says"),
    [
        (1, "0", "CUDA_VISIBLE_DEVICES names 1 device"),
        (0, "", "names 0 device"),
        (1, "0,-1,1", "names 1 device"),
        (0, "GPU-ffffffff", "0 devices whose UUID begins with GPU-ffffffff"),
        (0, "GPU-", "2 devices whose UUID begins with GPU-"),
        (2, "0,1,7", "does not answer"),
    ],
)
def test_a_device_that_is_not_there_is_refused_by_name(
    device: int, visible: str, says: str
) -> None:
    nvml = two_cards()
    with pytest.raises(GaugeUnavailable, match=says):
        gauge_of(nvml, device=device, environ={"CUDA_VISIBLE_DEVICES": visible})
    assert nvml.users == 0, "a session was left open"


def mig_card(parent_readable: bool = False) -> FakeNvml:
    """Two slices are ours to see; the third place holds another container's."""
    slices = [None, Slice(MIG_A, 18 * GIB, {"them": GIB}), Slice(MIG_B, 35 * GIB)]
    return FakeNvml(
        Card(A100, 40 * GIB, knows_mig=False),
        Card(H200, 141 * GIB, readable=parent_readable, slices=slices),
    )


@pytest.mark.parametrize("parent_readable", [False, True])
@pytest.mark.parametrize(
    ("device", "environ", "total"),
    [
        (0, {"CUDA_VISIBLE_DEVICES": MIG_B}, 35),
        (0, {"CUDA_VISIBLE_DEVICES": "MIG-c78853aa"}, 35),
        (1, {"NVIDIA_VISIBLE_DEVICES": MIG_B}, 35),
        (0, {"CUDA_VISIBLE_DEVICES": "1", "NVIDIA_VISIBLE_DEVICES": MIG_B}, 35),
        (0, {"CUDA_VISIBLE_DEVICES": H200, "NVIDIA_VISIBLE_DEVICES": MIG_B}, 35),
        (0, {"CUDA_VISIBLE_DEVICES": H200, "NVIDIA_VISIBLE_DEVICES": "all"}, 18),
        (0, {"CUDA_VISIBLE_DEVICES": H200, "NVIDIA_VISIBLE_DEVICES": H200}, 18),
        (1, {}, 18),
    ],
)
def test_of_a_card_cut_by_mig_the_slice_never_the_parent(
    device: int, environ: dict[str, str], total: int, parent_readable: bool
) -> None:
    gauge = gauge_of(mig_card(parent_readable), device=device, environ=environ)
    assert gauge.read().total == total * GIB


@pytest.mark.parametrize("uuid", [MIG_B, H200])
def test_cuda_may_name_the_slice_or_its_card(uuid: str) -> None:
    environ = {"NVIDIA_VISIBLE_DEVICES": MIG_B}
    gauge = gauge_of(mig_card(), environ=environ, cuda_uuid=uuid.partition("-")[2])
    assert gauge.read().total == 35 * GIB


def test_a_refusing_parent_is_a_parent_even_where_mig_mode_is_not_told() -> None:
    class Reticent(FakeNvml):
        def nvmlDeviceGetMigMode(self, device: object) -> list[int]:
            raise self.NVMLError("Insufficient Permissions")

    nvml = Reticent(Card(H200, readable=False, slices=[Slice(MIG_A, 18 * GIB)]))
    assert gauge_of(nvml).read().total == 18 * GIB


def test_a_slice_that_cannot_be_read_is_passed_over() -> None:
    slices: list[Slice | None] = [Slice(MIG_A, readable=False), Slice(MIG_B, 35 * GIB)]
    nvml = FakeNvml(Card(H200, readable=False, slices=slices))
    assert gauge_of(nvml).read().total == 35 * GIB


def test_mig_without_a_slice_for_us_says_what_to_set() -> None:
    nvml = FakeNvml(Card(H200, slices=[Slice(MIG_A, readable=False)]))
    with pytest.raises(GaugeUnavailable, match="set CUDA_VISIBLE_DEVICES to the slice"):
        gauge_of(nvml)


def test_a_card_that_is_not_ours_to_read_is_refused() -> None:
    nvml = FakeNvml(Card(H200, readable=False))
    with pytest.raises(GaugeUnavailable, match="Insufficient Permissions"):
        gauge_of(nvml)


# NVML missing, lost, back


def test_without_the_binding_the_reason_and_the_way_out_are_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(GaugeUnavailable, match=r"nvidia-ml-py.*--device cpu"):
        import_nvml()


def test_without_a_driver_the_reason_and_the_way_out_are_told() -> None:
    nvml = FakeNvml(Card(H200))
    nvml.broken = "NVML Shared Library Not Found"
    with pytest.raises(GaugeUnavailable, match=r"Library Not Found.*--device cpu"):
        gauge_of(nvml)


def test_while_nvml_is_away_nine_tenths_of_the_room_are_counted_on() -> None:
    card = Card(H200, 100 * GIB, {"us": 30 * GIB, "them": 20 * GIB})
    nvml = FakeNvml(card)
    gauge = gauge_of(nvml, ours=lambda: card.held["us"])
    assert gauge.read().available == 80 * GIB
    assert gauge.healthy

    nvml.broken = "GPU is lost"
    reading = gauge.read()
    assert not gauge.healthy
    assert (reading.total, reading.ours) == (100 * GIB, 30 * GIB)
    assert reading.available == 72 * GIB
    # What is ours is still known, and taken into account.
    card.held["us"] = 50 * GIB
    assert gauge.read() == Reading(100 * GIB, 78 * GIB, 50 * GIB)


def test_blindness_alone_takes_nothing_from_what_we_hold() -> None:
    card = Card(H200, 100 * GIB, {"us": 99 * GIB})
    nvml = FakeNvml(card)
    gauge = gauge_of(nvml, ours=lambda: card.held["us"])
    nvml.broken = "Unknown Error"
    assert gauge.read() == Reading(100 * GIB, 100 * GIB, 99 * GIB)


def test_while_nvml_is_away_cuda_is_believed_for_the_worse() -> None:
    card = Card(H200, 100 * GIB, {"us": 30 * GIB, "them": 20 * GIB})
    nvml = FakeNvml(card)
    cuda = FakeCuda(card)
    by_cuda = TorchGauge(lambda: card.held["us"], cuda.mem_get_info)
    gauge = gauge_of(nvml, ours=lambda: card.held["us"], fallback=by_cuda)
    nvml.broken = "Driver/library version mismatch"
    assert gauge.read().available == 72 * GIB
    card.held["them"] = 60 * GIB
    assert gauge.read() == Reading(100 * GIB, 90 * GIB, 30 * GIB)
    card.held["them"] = 0
    assert gauge.read().available == 72 * GIB
    cuda.error = RuntimeError("CUDA error: unspecified launch failure")
    assert gauge.read().available <= 72 * GIB
    assert not gauge.healthy


def test_when_the_driver_is_back_the_gauge_sees_again_by_a_new_handle() -> None:
    card = Card(H200, 100 * GIB)
    nvml = FakeNvml(card)
    gauge = gauge_of(nvml)
    nvml.broken = "Driver Not Loaded"
    gauge.read()
    assert not gauge.healthy

    nvml.restart_driver()
    nvml.broken = ""
    card.held["them"] = 40 * GIB
    assert gauge.read() == Reading(100 * GIB, 40 * GIB, 0)
    assert gauge.healthy


def test_a_handle_that_died_unseen_costs_one_estimate() -> None:
    nvml = FakeNvml(Card(H200, 100 * GIB))
    gauge = gauge_of(nvml)
    nvml.restart_driver()
    nvml.users = 1  # somebody else in this process has started NVML already
    gauge.read()
    assert not gauge.healthy
    assert gauge.read() == Reading(100 * GIB, 0, 0)
    assert gauge.healthy


def test_a_slice_taken_away_while_running_is_an_estimate_not_a_crash() -> None:
    nvml = mig_card()
    gauge = gauge_of(nvml, environ={"CUDA_VISIBLE_DEVICES": MIG_B})
    nvml.cards[1].slices.pop()
    nvml.restart_driver()
    for _ in range(3):
        assert gauge.read().total == 35 * GIB
        assert not gauge.healthy


def test_closing_ends_only_our_session() -> None:
    nvml = FakeNvml(Card(H200))
    nvml.nvmlInit()
    gauge = gauge_of(nvml)
    gauge.close()
    gauge.close()
    assert nvml.users == 1
    nvml.broken = "Unknown Error"
    gauge.read()
    nvml.broken = ""
    assert nvml.users == 1


def test_bytes_that_become_ours_during_a_look_are_not_somebody_elses() -> None:
    card = Card(H200, 100 * GIB, {"us": 0})

    class Loading(FakeNvml):
        def nvmlDeviceGetMemoryInfo(
            self, handle: object, version: int | None = None
        ) -> object:
            card.held["us"] = 40 * GIB
            return super().nvmlDeviceGetMemoryInfo(handle, version)

    gauge = gauge_of(Loading(card), ours=lambda: card.held["us"])
    card.held["us"] = 0
    assert gauge.read().available == 100 * GIB


def test_bytes_that_stop_being_ours_during_a_look_are_not_somebody_elses() -> None:
    card = Card(H200, 100 * GIB, {"us": 40 * GIB})
    told = [0, 40 * GIB, 40 * GIB, 40 * GIB]  # popped from the end: freed by the last
    gauge = gauge_of(FakeNvml(card), ours=told.pop)
    assert gauge.read().available == 100 * GIB


# CUDA and the host


def test_cuda_alone_reads_a_card_and_survives_its_errors() -> None:
    card = Card(H200, 100 * GIB, {"us": 10 * GIB, "them": 20 * GIB})
    cuda = FakeCuda(card)
    gauge = TorchGauge(lambda: 10 * GIB, cuda.mem_get_info)
    assert gauge.read() == Reading(100 * GIB, 30 * GIB, 10 * GIB)
    cuda.error = RuntimeError("CUDA error: an illegal memory access was encountered")
    assert gauge.read().available == 72 * GIB
    assert not gauge.healthy
    cuda.error = None
    assert gauge.read().available == 80 * GIB
    assert gauge.healthy
    gauge.close()


@pytest.mark.parametrize(
    "error", [RuntimeError("no driver"), AssertionError("no CUDA")]
)
def test_cuda_that_is_not_there_is_refused(error: Exception) -> None:
    cuda = FakeCuda(Card(H200))
    cuda.error = error
    with pytest.raises(GaugeUnavailable, match="CUDA cannot tell"):
        TorchGauge(lambda: 0, cuda.mem_get_info)


def test_a_gauge_for_the_cpu_reads_this_very_host() -> None:
    held = 5 * MIB
    gauge = open_gauge(torch.device("cpu"), {}, ours=lambda: held)
    reading = gauge.read()
    assert reading.ours == held
    assert 0 < reading.used < reading.total
    assert gauge.healthy
    with pytest.raises(TypeError, match="give `ours`"):
        open_gauge(torch.device("cpu"), {})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_gauge_for_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(GaugeUnavailable):
        open_gauge(torch.device("cuda:0"), {})


def test_the_host_survives_a_proc_that_cannot_be_read() -> None:
    answers: list[Callable[[], tuple[int, int]]] = []

    def measure() -> tuple[int, int]:
        return answers.pop()()

    def fail() -> tuple[int, int]:
        raise OSError("Too many open files")

    answers[:] = [lambda: (100, 60), fail, lambda: (100, 40)]
    gauge = HostGauge(lambda: 10, measure)
    assert gauge.read() == Reading(100, 100 - (63 - 10), 10)
    assert not gauge.healthy
    assert gauge.read() == Reading(100, 60, 10)
    assert gauge.healthy
    gauge.close()
    answers[:] = [fail]
    with pytest.raises(GaugeUnavailable, match="Too many open files"):
        HostGauge(lambda: 10, measure)


def host(root: Path, cgroup: str, files: Mapping[str, str]) -> tuple[int, int]:
    """A host of 1000 KiB with 600 KiB available, and these control groups."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text("MemTotal: 1000 kB\nMemAvailable: 600 kB\n")
    (root / "proc/self/cgroup").write_text(cgroup)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return hostram.measure(root)


K = 1024


@pytest.mark.parametrize(
    ("cgroup", "files", "expected"),
    [
        pytest.param("0::/\n", {}, (1000 * K, 400 * K), id="no limit anywhere"),
        pytest.param(
            "0::/\n",
            {
                "memory.max": "512000",
                "memory.current": "300000",
                "memory.stat": "anon 7\ninactive_file 100000",
            },
            (512000, 200000),
            id="v2: a container's own group; page cache is not used memory",
        ),
        pytest.param(
            "0::/kubepods/pod1\n",
            {
                "kubepods/pod1/memory.max": "max",
                "kubepods/pod1/memory.high": "400000",
                "kubepods/pod1/memory.current": "100000",
                "kubepods/memory.max": "500000",
                "kubepods/memory.current": "450000",
            },
            (400000, 350000),
            id="v2: memory.high counts, and the parent's room is the tightest",
        ),
        pytest.param(
            "0::/kubepods/host/path\n",
            {"memory.max": "512000", "memory.current": "1000"},
            (512000, 1000),
            id="v2: the path is the host's, the mount is the container's",
        ),
        pytest.param(
            "5:cpu,cpuacct:/x\n4:memory:/docker/1\n0::/\n",
            {
                "memory/x/memory.limit_in_bytes": "1",  # not our group for memory
                "memory/x/memory.usage_in_bytes": "1",
                "memory/docker/1/memory.limit_in_bytes": "600000",
                "memory/docker/1/memory.usage_in_bytes": "250000",
                "memory/docker/1/memory.stat": "total_inactive_file 50000",
                "memory/memory.limit_in_bytes": "9223372036854771712",
                "memory/memory.usage_in_bytes": "999999",
            },
            (600000, 200000),
            id="v1: a limit of none is a very large one",
        ),
        pytest.param(
            "0::/\n",
            {"memory.max": "1000", "memory.current": "5000"},
            (1000, 1000),
            id="over the limit: nothing is free, and not less",
        ),
        pytest.param(
            "0::/\n",
            {"memory.max": "900000", "memory.current": "200000"},
            (900000, 900000 - 600 * K),
            id="a limit above what the machine still has",
        ),
    ],
)
def test_host_memory_is_bounded_by_the_tightest_group(
    tmp_path: Path, cgroup: str, files: dict[str, str], expected: tuple[int, int]
) -> None:
    assert host(tmp_path, cgroup, files) == expected


# Budgets


@pytest.mark.parametrize(
    ("text", "of_10_gib"),
    [
        ("80%", 8 * GIB),
        (" 12.5 % ", 10 * GIB // 8),
        ("100%", 10 * GIB),
        ("4GiB", 4 * GIB),
        ("4 gib", 4 * GIB),
        ("4Gi", 4 * GIB),
        ("1.5MiB", 3 * MIB // 2),
        ("512MB", 512_000_000),
        ("2tb", 2 * 1000**4),
        ("4000000000", 4_000_000_000),
        ("1b", 1),
    ],
)
def test_a_budget_is_read_as_people_write_it(text: str, of_10_gib: int) -> None:
    assert parse_budget(text).of(10 * GIB) == of_10_gib


@pytest.mark.parametrize(
    "text",
    ["", "%", "0%", "101%", "-1GiB", "4 GiB 2", "4GB/s", "1e9", "0.8", "0", "nan"]
    + ["4G", "four", "٤GiB", "1_000", "9" * 30, "4PiB", "80%%", "."],
)
def test_a_budget_that_cannot_be_meant_is_refused_with_examples(text: str) -> None:
    with pytest.raises(BudgetRefused, match="write a share of the device like '80%'"):
        parse_budget(text)


def test_budgets_are_parsed_without_waiting_for_torch() -> None:
    code = "import sys, runtime.budget; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_a_budget_prints_as_it_was_meant() -> None:
    assert str(Budget()) == "80%"
    assert str(parse_budget("12.5%")) == "12.5%"
    assert str(parse_budget("4GiB")) == "4294967296 bytes"
    assert Budget(Decimal(50)).of(3) == 1


@pytest.mark.parametrize(
    ("budget", "used", "ours", "reserve", "expected"),
    [
        ("80%", 0, 0, 0, 80),
        ("80%", 10, 10, 0, 80),
        ("80%", 50, 10, 0, 60),
        ("80%", 50, 10, 5, 55),
        ("30b", 50, 10, 5, 30),
        ("1tb", 50, 10, 5, 55),
        ("80%", 100, 0, 0, 0),
        ("80%", 98, 3, 20, 0),
        ("100%", 0, 0, 25, 75),
    ],
)
def test_capacity_is_the_least_of_allowed_and_there(
    budget: str, used: int, ours: int, reserve: int, expected: int
) -> None:
    reading = Reading(100, used, ours)
    assert capacity(parse_budget(budget), reading, reserve) == expected


@given(
    st.integers(0, 10**12),
    st.integers(0, 10**12),
    st.integers(0, 10**12),
    st.integers(0, 10**12),
    st.integers(1, 100),
)
def test_capacity_is_never_negative_nor_more_than_allowed(
    total: int, used: int, ours: int, reserve: int, percent: int
) -> None:
    reading = Reading(total, min(used, total), ours)
    found = capacity(Budget(Decimal(percent)), reading, reserve)
    assert 0 <= found <= total * percent // 100
    assert found <= max(0, reading.available - reserve)


@pytest.mark.parametrize(
    ("total", "on_gpu", "expected"),
    [
        (80 * GIB, True, 4 * GIB),
        (24 * GIB, True, 24 * GIB // 20),
        (10 * GIB, True, 512 * MIB),
        (GIB, True, 256 * MIB),
        (16 * GIB, False, 16 * GIB // 20),
        (512 * GIB, False, 2 * GIB),
        (2 * GIB, False, 256 * MIB),
        (0, False, 0),
    ],
)
def test_the_reserve_grows_with_the_device_within_bounds(
    total: int, on_gpu: bool, expected: int
) -> None:
    assert default_reserve(total, on_gpu) == expected


# The tide


def levels(*told: tuple[float, int]) -> list[int]:
    tide = Tide()
    return [tide.told(now, capacity) for now, capacity in told]


def test_a_deep_fall_is_followed_at_once() -> None:
    assert levels((0, 1000), (1, 949)) == [1000, 949]


def test_a_shallow_fall_must_last() -> None:
    assert levels((0, 1000), (1, 960), (10.9, 970), (11, 965)) == [
        1000,
        1000,
        1000,
        965,
    ]


def test_a_shallow_fall_that_passes_leaves_no_trace() -> None:
    told = (0, 1000), (1, 960), (9, 1000), (10, 960), (19, 960)
    assert levels(*told) == [1000] * 5


def test_a_rise_must_last_and_reaches_its_lowest_point_only() -> None:
    told = (0, 500), (1, 1000), (30, 700), (60.9, 900), (61, 1000), (62, 1000)
    assert levels(*told) == [500, 500, 500, 500, 700, 700]


def test_a_rise_interrupted_waits_anew() -> None:
    told = (0, 500), (1, 1000), (50, 500), (51, 1000), (110, 1000), (111, 1000)
    assert levels(*told) == [500] * 5 + [1000]
    told = (0, 500), (1, 1000), (50, 499), (51, 1000), (110, 1000), (111, 1000)
    assert levels(*told) == [500] * 5 + [1000]


def test_from_nothing_it_grows_again() -> None:
    assert levels((0, 10), (1, 0), (2, 10), (62, 10)) == [10, 0, 0, 10]


def test_the_tide_says_where_it_stands() -> None:
    tide = Tide()
    tide.told(0, 100)
    assert repr(tide) == "<Tide 100 bytes, calm>"
    tide.told(1, 99)
    assert repr(tide) == "<Tide 100 bytes, falling>"
    tide.told(2, 120)
    assert repr(tide) == "<Tide 100 bytes, rising>"


@given(st.lists(st.tuples(st.floats(0, 30), st.integers(0, 10**6)), min_size=1))
def test_the_tide_is_never_far_above_what_is_there_nor_higher_than_a_minute_allows(
    steps: list[tuple[float, int]],
) -> None:
    tide, now = Tide(), 0.0
    history: list[tuple[float, int]] = []
    before: int | None = None
    for pause, there in steps:
        now += pause
        history.append((now, there))
        level = tide.told(now, there)
        assert level * 0.95 <= there
        if before is not None and level > before:
            last_minute = [c for at, c in history if at > now - 60]
            assert level <= min(last_minute)
        before = level


def test_another_process_takes_memory_and_gives_it_back() -> None:
    """The whole way: NVML to the bytes that the ledger may book."""
    card = Card(H200, 100 * GIB, {"us": 40 * GIB})
    gauge = gauge_of(FakeNvml(card), ours=lambda: card.held["us"])
    budget, tide = parse_budget("80%"), Tide()

    def allowed(now: float) -> int:
        return tide.told(now, capacity(budget, gauge.read(), 4 * GIB)) // GIB

    assert allowed(0) == 80
    card.held["us"] = 75 * GIB  # we fill up: that changes nothing
    assert allowed(1) == 80
    card.held |= {"us": 40 * GIB, "them": 50 * GIB}
    assert allowed(2) == 46
    card.held["them"] = 0
    assert allowed(3) == 46
    assert allowed(62) == 46
    assert allowed(63) == 80


def test_memory_reads_a_handle() -> None:
    nvml = FakeNvml(Card(H200, 80 * GIB, {"them": GIB}))
    nvml.nvmlInit()
    assert memory(nvml, nvml.nvmlDeviceGetHandleByIndex(0)) == (80 * GIB, GIB)
