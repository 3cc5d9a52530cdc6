"""How long threads may run, as the kernel says."""

import ctypes
import os
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from loader import slices
from loader.threads import SLICE_S, stand_back
from runtime.envoy import rank

OTHER = getattr(os, "SCHED_OTHER", 0)


def within_a_thread(work):
    """What `work` returns in a thread of its own, which ends with what it changed."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(work).result()


def gives_slices() -> bool:
    """True where a thread that asks for a slice has it (Linux 6.12)."""
    return within_a_thread(
        lambda: slices.ask_for(0.01, OTHER) and slices.given() == pytest.approx(0.01)
    )


needs_slices = pytest.mark.skipif(
    not gives_slices() or os.sched_getscheduler(0) != OTHER,
    reason="no thread has a slice of its own here, or the run has another rank",
)


@needs_slices
def test_a_thread_gets_the_slice_that_it_asks_for_and_its_own_again():
    def asked():
        own = slices.given()
        assert slices.ask_for(0.02, OTHER)
        longer = slices.given()
        assert slices.ask_for(slices.OWN, OTHER)
        return own, longer, slices.given()

    own, longer, after = within_a_thread(asked)
    assert (longer, after) == (pytest.approx(0.02), own)
    assert own != longer


@needs_slices
def test_its_nice_value_stays_and_its_policy_is_the_one_asked_for():
    def asked():
        os.setpriority(os.PRIO_PROCESS, 0, os.getpriority(os.PRIO_PROCESS, 0) + 1)
        nice = os.getpriority(os.PRIO_PROCESS, 0)
        slices.ask_for(0.02, OTHER)
        first = os.sched_getscheduler(0)
        slices.ask_for(0.02, os.SCHED_BATCH)
        return nice, os.getpriority(os.PRIO_PROCESS, 0), first, os.sched_getscheduler(0)

    before, after, first, second = within_a_thread(asked)
    assert before == after
    assert (first, second) == (os.SCHED_OTHER, os.SCHED_BATCH)


def test_what_is_refused_changes_nothing():
    def asked():
        before = slices.given()
        refused = slices.ask_for(0.02, 99)
        return refused, before == slices.given()

    assert within_a_thread(asked) == (False, True)


def test_where_there_is_no_such_call_nothing_happens(monkeypatch):
    monkeypatch.setattr(slices, "_SET_GET", None)
    monkeypatch.setattr(ctypes, "CDLL", None)  # whoever called it would hear of it
    assert (slices.ask_for(0.02, OTHER), slices.given()) == (False, slices.OWN)


@needs_slices
def test_threads_that_load_come_seldom_and_stay_for_longer():
    def stood_back():
        stand_back()
        return slices.given(), os.sched_getscheduler(0)

    slice_s, policy = within_a_thread(stood_back)
    assert (slice_s, policy) == (pytest.approx(SLICE_S), os.SCHED_BATCH)


@needs_slices
def test_envoys_threads_inherit_a_long_slice_and_the_loop_has_its_own():
    def became_envoy():
        before = slices.given()
        rank.take_turns()
        workers = within_a_thread(slices.given)
        rank.push_ahead()
        return before, workers, slices.given()

    before, workers, loops = within_a_thread(became_envoy)
    assert workers == pytest.approx(rank.SLICE_S)
    assert before == loops != workers


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no rank elsewhere")
@pytest.mark.parametrize("refused", ["sched_getscheduler", "getpriority"])
def test_a_sandbox_that_refuses_even_to_tell_stops_nothing(monkeypatch, refused):
    def refuses(*args):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, refused, refuses)
    if refused == "getpriority":
        assert not slices.ask_for(0.02, OTHER)
    rank.take_turns()
    rank.push_ahead()


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no rank elsewhere")
def test_a_rank_of_the_operators_is_kept(monkeypatch):
    asked = []
    monkeypatch.setattr(slices, "ask_for", lambda *of: asked.append(of))
    monkeypatch.setattr(os, "sched_getscheduler", lambda pid: os.SCHED_IDLE)
    rank.take_turns()
    rank.push_ahead()
    assert asked == []
