"""Threads that stand back."""

import os
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from loader import slices
from loader.threads import NICE, stand_back


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no rank elsewhere")
def test_a_loading_thread_has_a_lower_rank_and_puts_nobody_aside() -> None:
    def rank() -> tuple[int, int]:
        return os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0)

    before = rank()
    with ThreadPoolExecutor(1, initializer=stand_back) as threads:
        # Who is that low already (a niced test run) is not lifted.
        assert threads.submit(rank).result() == (max(NICE, before[0]), os.SCHED_BATCH)
    assert rank() == before


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no rank elsewhere")
def test_a_sandbox_that_refuses_ranks_does_not_stop_a_thread(monkeypatch) -> None:
    def refused(*args: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    for call in ("getpriority", "setpriority"):
        monkeypatch.setattr(os, call, refused)
    for call in ("sched_getscheduler", "sched_setscheduler"):
        monkeypatch.setattr(os, call, refused)
    monkeypatch.setattr(slices, "_call", lambda *_: False)
    with ThreadPoolExecutor(1, initializer=stand_back) as threads:
        assert threads.submit(lambda: 7).result() == 7
