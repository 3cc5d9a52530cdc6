"""The threads that run models."""

import os
import subprocess
import sys

import pytest

ALONE = """
import asyncio, os, sys, torch
from runtime.cross import Cross
from runtime.lanes import Lanes

def threads() -> int:
    return len(os.listdir("/proc/self/task"))

def forward() -> int:
    before = threads()
    torch.rand(512, 512) @ torch.rand(512, 512)
    return threads() - before

async def main() -> None:
    if sys.argv[2] == "lane":
        lanes = Lanes(torch.device("cpu"), 2)
        print(await lanes.start(forward))
        lanes.close()
    else:
        cross = Cross()
        print(cross._threads.submit(forward).result())
        cross.close()

torch.set_num_threads(int(sys.argv[1]))
asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
@pytest.mark.parametrize("place", ["lane", "a trial of several models as one"])
@pytest.mark.parametrize("share", [1, 3])
def test_a_call_has_the_threads_that_torch_was_told_of(share, place) -> None:
    """In a process of its own that OMP_NUM_THREADS tells nothing, as users have it.
    MKL makes its threads for the first product that is worth it: as many as there are
    cores, if it is not told. (So where there are three, only one share shows it.)"""
    told = {name: value for name, value in os.environ.items() if "NUM_TH" not in name}
    ended = subprocess.run(
        [sys.executable, "-c", ALONE, str(share), place],
        capture_output=True,
        text=True,
        check=True,
        env=told,
    )
    assert int(ended.stdout) == share - 1
