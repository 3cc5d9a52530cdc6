"""The gauge on a real GPU: NVML and CUDA must tell the same story."""

import os

import pytest
import torch

from runtime.budget import Budget, capacity, default_reserve
from runtime.vram import NvmlGauge, TorchGauge, open_gauge

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

MIB = 1024**2
GRAIN = 64 * MIB  # allocator segments and NVML's own 2 MiB, with room to spare


def test_what_we_allocate_shows_as_used_and_as_ours_and_goes_again() -> None:
    device = torch.device("cuda:0")
    torch.empty(1, device=device)
    gauge = open_gauge(device, os.environ)
    before = gauge.read()
    block = torch.empty(512 * MIB, dtype=torch.uint8, device=device)
    during = gauge.read()
    del block
    torch.cuda.empty_cache()
    after = gauge.read()
    gauge.close()
    assert abs(during.used - before.used - 512 * MIB) <= GRAIN
    assert abs(during.ours - before.ours - 512 * MIB) <= GRAIN
    assert abs(during.available - before.available) <= GRAIN
    assert abs(after.used - before.used) <= GRAIN
    assert gauge.healthy


def test_nvml_and_cuda_agree_on_what_is_free() -> None:
    device = torch.device("cuda:0")
    torch.empty(1, device=device)
    nvml = open_gauge(device, os.environ)
    if not isinstance(nvml, NvmlGauge):
        pytest.skip("no NVML on this machine")
    cuda = TorchGauge(
        lambda: torch.cuda.memory_reserved(0), lambda: torch.cuda.mem_get_info(0)
    )
    assert abs(nvml.read().free - cuda.read().free) <= 0.01 * nvml.read().total
    nvml.close()


def test_the_capacity_of_a_real_card_is_within_the_card() -> None:
    gauge = open_gauge(torch.device("cuda:0"), os.environ)
    reading = gauge.read()
    reserve = default_reserve(reading.total, on_gpu=True)
    assert 0 <= capacity(Budget(), reading, reserve) <= 0.8 * reading.total
    gauge.close()
