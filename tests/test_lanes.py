"""The threads that run models."""

import os
import subprocess
import sys

import pytest

ALONE = """
import asyncio, os, sys, torch
from runtime.lanes import Lanes

def threads() -> int:
    return len(os.listdir("/proc/self/task"))

def forward() -> int:
    before = threads()
    torch.rand(512, 512) @ torch.rand(512, 512)
    return threads() - before

async def main() -> None:
    lanes = Lanes(torch.device("cpu"), 2)
    print(await lanes.start(forward))
    lanes.close()

torch.set_num_threads(int(sys.argv[1]))
asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
@pytest.mark.parametrize("share", [1, 3])
def test_a_call_in_a_lane_has_the_threads_that_torch_was_told_of(share) -> None:
    """In a process of its own that OMP_NUM_THREADS tells nothing, as users have it.
    MKL makes its threads for the first product that is worth it."""
    told = {name: value for name, value in os.environ.items() if "NUM_TH" not in name}
    ended = subprocess.run(
        [sys.executable, "-c", ALONE, str(share)],
        capture_output=True,
        text=True,
        check=True,
        env=told,
    )
    assert int(ended.stdout) == share - 1
