import gc
import inspect
import tracemalloc
from collections import Counter

import pytest
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families as parse

from loader.manifest import FileRef, ModelSpec
from runtime.counts import Counts
from runtime.engine import Resident, Snapshot
from runtime.fame import MANY_CANDIDATES, Fame
from runtime.histogram import MANY_WORDS, OTHER, Histogram, Words
from runtime.metrics import Metrics
from runtime.observer import NullObserver, Observer

FILE = FileRef("f", 1, "0" * 64)


def spec(name: str = "m") -> ModelSpec:
    return ModelSpec(name, "1", FILE, FILE, (), (), 8)


def snapshot(**changed) -> Snapshot:
    values = {
        "device": "cuda:0",
        "policy": "gdsf",
        "capacity": 1000,
        "held": 600,
        "peak_held": 900,
        "measured": 700,
        "waiting": 3,
        "uptime_s": 12.5,
        "requests": {"hit": 8, "wait": 1, "miss": 1},
        "loads": 2,
        "evictions": 1,
        "failures": 0,
        "residents": [],
    }
    return Snapshot(**{**values, **changed})


def resident(name: str, nbytes: int, state: str = "READY") -> Resident:
    return Resident(name, "1", state, nbytes, "cuda:0", 0, 1, 0.5, False)


@pytest.fixture
def counts() -> Counts:
    return Counts(top=4)


def samples(counts: Counts, now: Snapshot | None = None) -> dict:
    """(name, sorted labels) -> value, read back with the client's own parser."""
    page, _ = Metrics(counts, "1.2.3").page(now or snapshot())
    found = {}
    for family in parse(page.decode()):
        assert family.documentation, family.name
        for sample in family.samples:
            key = (sample.name, *sorted(sample.labels.items()))
            assert key not in found, f"{key} is there twice"
            found[key] = sample.value
    return found


def test_counts_and_a_silent_observer_satisfy_the_protocol(counts):
    observers: list[Observer] = [counts, NullObserver()]
    for observer in observers:
        observer.answered("m", "hit", 0.001, 1)
        observer.refused("", "NOT_FOUND")
        observer.queued("m", [0.001])
        observer.computed("m", 0.001, 1, 1)
        observer.loaded(spec(), 10, {"fetch": 0.1}, 0.2)
        observer.load_failed(spec(), "StoreUnreachable", 0.2)
        observer.evicted(spec(), 10, "room")
    assert {name for name, _ in inspect.getmembers(Observer, inspect.isfunction)} <= {
        "__init__", "__subclasshook__", "answered", "refused", "queued", "computed",
        "loaded", "load_failed", "evicted",
    }, "one was not tried"  # fmt: skip


def test_requests_by_outcome_and_how_they_met_their_model(counts):
    for _ in range(3):
        counts.answered("m", "hit", 0.0002, 2)
    counts.answered("m", "wait", 0.2, 1)
    counts.answered("m", "miss", 7.0, 1)
    counts.refused("m", "NO_ROOM")
    counts.refused("", "NOT_FOUND")
    got = samples(counts)
    requests = "hotset_requests_total"
    assert got[requests, ("outcome", "ok"), ("temperature", "hit")] == 3
    assert got[requests, ("outcome", "ok"), ("temperature", "wait")] == 1
    assert got[requests, ("outcome", "ok"), ("temperature", "miss")] == 1
    assert got[requests, ("outcome", "NO_ROOM"), ("temperature", "")] == 1
    assert got[requests, ("outcome", "NOT_FOUND"), ("temperature", "")] == 1
    assert got[("hotset_rows_total",)] == 8
    hot = ("temperature", "hit")
    duration = "hotset_request_duration_seconds"
    assert got[f"{duration}_count", hot] == 3
    assert got[f"{duration}_sum", hot] == pytest.approx(0.0006)
    assert got[f"{duration}_bucket", ("le", "0.0001"), hot] == 0
    assert got[f"{duration}_bucket", ("le", "0.00025"), hot] == 3
    assert got[f"{duration}_bucket", ("le", "+Inf"), hot] == 3
    cold = ("temperature", "miss")
    assert got[f"{duration}_bucket", ("le", "5.0"), cold] == 0
    assert got[f"{duration}_bucket", ("le", "10.0"), cold] == 1


def test_work_loads_and_evictions(counts):
    counts.queued("m", [0.003])
    counts.computed("m", 0.02, rows=12, requests=5)
    counts.loaded(spec(), 100, {"fetch": 0.5, "copy": 0.01, "??": 9.0}, 0.6)
    counts.load_failed(spec(), "ArtifactRefused", 0.1)
    counts.evicted(spec(), 40, "room")
    counts.evicted(spec(), 60, "room")
    counts.evicted(spec(), 7, "unloaded")
    got = samples(counts)
    assert got[("hotset_queue_wait_seconds_count",)] == 1
    assert got[("hotset_compute_duration_seconds_sum",)] == pytest.approx(0.02)
    assert got["hotset_batch_requests_bucket", ("le", "4.0")] == 0
    assert got["hotset_batch_requests_bucket", ("le", "8.0")] == 1
    assert got["hotset_loads_total", ("outcome", "ok")] == 1
    assert got["hotset_loads_total", ("outcome", "ArtifactRefused")] == 1
    assert got[("hotset_load_duration_seconds_sum",)] == pytest.approx(0.6)
    phase = "hotset_load_phase_duration_seconds_count"
    assert got[phase, ("phase", "fetch")] == 1
    assert got[phase, ("phase", "verify")] == 0
    assert (phase, ("phase", "??")) not in got
    assert got[("hotset_loaded_bytes_total",)] == 100
    assert got["hotset_evictions_total", ("reason", "room")] == 2
    assert got["hotset_evictions_total", ("reason", "unloaded")] == 1
    assert got[("hotset_evicted_bytes_total",)] == 107


def test_the_snapshot_is_published(counts):
    residents = [resident("a", 400), resident("b", 200, "LOADING")]
    got = samples(counts, snapshot(residents=residents))
    assert got[("hotset_memory_budget_bytes",)] == 1000
    assert got[("hotset_memory_held_bytes",)] == 600
    assert got[("hotset_memory_held_peak_bytes",)] == 900
    assert got[("hotset_memory_measured_bytes",)] == 700
    assert got[("hotset_gauge_up",)] == 1
    assert got[("hotset_waiting_requests",)] == 3
    assert got[("hotset_uptime_seconds",)] == 12.5
    assert got["hotset_residents", ("state", "READY")] == 1
    assert got["hotset_residents", ("state", "LOADING")] == 1
    assert got["hotset_residents", ("state", "UNLOADING")] == 0
    info = ("device", "cuda:0"), ("kernels", "torch"), ("policy", "gdsf")
    assert got["hotset_info", *info, ("version", "1.2.3")] == 1
    assert any(key[0] == "process_resident_memory_bytes" for key in got)


def test_what_is_not_measured_is_absent_and_not_zero(counts):
    got = samples(counts, snapshot(measured=None))
    assert ("hotset_memory_measured_bytes",) not in got
    assert ("hotset_gauge_up",) not in got
    got = samples(counts, snapshot(gauge_up=False))
    assert got[("hotset_gauge_up",)] == 0


def test_models_have_labels_up_to_a_bound_and_the_rest_is_other(counts):
    for number in range(10):
        counts.answered(f"m{number}", "hit", 0.001, 1)
        counts.computed(f"m{number}", 0.5, 1, 1)
    counts.refused("m0", "NO_ROOM")
    counts.refused("m9", "NO_ROOM")
    residents = [resident(f"m{number}", 10) for number in range(10)]
    got = samples(counts, snapshot(residents=residents))
    ok = ("outcome", "ok"), ("temperature", "hit")
    answered = {
        dict(key[1:])["model"]: value
        for key, value in got.items()
        if key[0] == "hotset_model_requests_total" and set(ok) <= set(key[1:])
    }
    assert answered == {"m0": 1, "m1": 1, "m2": 1, "m3": 1, OTHER: 6}
    assert got["hotset_model_held_bytes", ("model", OTHER)] == 60
    assert got["hotset_model_compute_seconds_total", ("model", "m3")] == 0.5
    assert got["hotset_model_compute_seconds_total", ("model", OTHER)] == 3.0
    refused = ("outcome", "refused"), ("temperature", "")
    assert got["hotset_model_requests_total", ("model", "m0"), *refused] == 1


def test_a_hundred_thousand_unknown_names_change_nothing(counts):
    counts.answered("known", "hit", 0.001, 1)
    counts.refused("", "NOT_FOUND")
    before = set(samples(counts))
    gc.collect()
    tracemalloc.start()
    for number in range(100_000):
        counts.refused(f"unknown-{number}", "NOT_FOUND")
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert set(samples(counts)) == before
    assert grown < 100_000


def test_a_hundred_thousand_real_models_stay_within_the_bound(counts):
    for number in range(100_000):
        counts.answered(f"m{number}", "miss", 0.001, 1)
    got = samples(counts)
    models = Counter(
        dict(key[1:])["model"] for key in got if key[0].startswith("hotset_model_")
    )
    assert len(models) <= 2 * 4 + 1
    missed = ("outcome", "ok"), ("temperature", "miss")
    assert got["hotset_requests_total", *missed] == 100_000


def test_outcomes_and_reasons_are_bounded_too(counts):
    for number in range(1000):
        counts.evicted(spec(), 1, f"reason {number}")
    got = samples(counts)
    reasons = [key for key in got if key[0] == "hotset_evictions_total"]
    assert len(reasons) == MANY_WORDS + 1
    assert got["hotset_evictions_total", ("reason", OTHER)] == 1000 - MANY_WORDS


def test_a_model_called_other_is_not_published_twice(counts):
    counts.answered(OTHER, "hit", 0.001, 1)
    counts.answered("m", "hit", 0.001, 1)
    hits = ("model", OTHER), ("outcome", "ok"), ("temperature", "hit")
    got = samples(counts, snapshot(residents=[resident(OTHER, 5)]))
    assert got["hotset_model_requests_total", *hits] == 1
    assert got["hotset_model_held_bytes", ("model", OTHER)] == 5


def test_the_page_is_openmetrics_for_who_asks_for_it(counts):
    counts.answered("m", "hit", 0.001, 1)
    page, content_type = Metrics(counts, "1").page(
        snapshot(), "application/openmetrics-text; version=1.0.0"
    )
    assert content_type.startswith("application/openmetrics-text")
    names = {family.name for family in parse_openmetrics(page.decode())}
    assert "hotset_requests" in names


def test_names_say_their_unit(counts):
    page, _ = Metrics(counts, "1").page(snapshot())
    for family in parse(page.decode()):
        if not family.name.startswith("hotset"):
            continue
        assert family.name.startswith("hotset_")
        if any(word in family.name for word in ("duration", "wait_", "uptime")):
            assert family.name.endswith("_seconds"), family.name
        if any(word in family.name for word in ("memory", "_bytes")):
            assert family.name.endswith("_bytes"), family.name


class Record:
    def __init__(self) -> None:
        self.recent = 0.0


def test_an_election_gives_places_to_those_with_the_most_traffic():
    fame = Fame(2, Record, term=100)
    for _ in range(20):
        fame.of("early")
        fame.of("first")
    assert {name for name, _ in fame.all()} == {"early", "first", OTHER}
    while fame.seen("late") is None:  # the next election
        fame.of("late")
    # Nobody loses a series for having lost its place, while there is room.
    assert {name for name, _ in fame.all()} == {"early", "first", "late", OTHER}


def test_a_new_hot_set_takes_the_place_of_the_old_one():
    fame = Fame(3, Record, term=50)
    for generation in range(20):
        for turn in range(200):
            fame.of(f"g{generation}-{turn % 3}")
        names = {name for name, _ in fame.all()}
        assert names >= {f"g{generation}-{n}" for n in range(3)}
        assert len(names) <= 2 * 3 + 1


def test_candidates_are_bounded():
    fame = Fame(1, Record, term=10**9)
    for number in range(3 * MANY_CANDIDATES):
        fame.of(f"m{number}")
    assert len(fame._candidates) == MANY_CANDIDATES
    assert fame.other.recent == 3 * MANY_CANDIDATES - 1


def test_no_places_means_all_is_other():
    fame = Fame(0, Record, term=3)
    for _ in range(10):
        assert fame.of("m") is fame.other
    assert [name for name, _ in fame.all()] == [OTHER]


def test_a_bound_belongs_to_its_bucket():
    histogram = Histogram((1.0, 2.0))
    for value in (0.0, 1.0, 1.5, 2.0, 2.5):
        histogram.add(value)
    assert histogram.buckets() == [("1.0", 2), ("2.0", 4), ("+Inf", 5)]
    assert (histogram.count, histogram.total) == (5, 7.0)


def test_expected_words_are_there_from_the_start():
    words = Words("ok")
    assert words.read() == {"ok": 0}
    words.add("ok")
    words.add("lost", 2)
    assert words.read() == {"ok": 1, "lost": 2}
