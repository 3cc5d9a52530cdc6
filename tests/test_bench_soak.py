"""What bench.soak makes of what it saw."""

import os
import sys
from dataclasses import replace

import pytest

from bench import soak
from bench.soak_course import Course, Look, Seen, look, memory_of
from bench.soak_results import figures_of, hit_windows, slope, windows
from bench.soak_traffic import KINDS, Told

HOUR = 3600.0


def looked(at: float) -> Look:
    """A server that has 300 MiB at first and gets 6 more in an hour."""
    own = 300.0 + 6.0 * at / HOUR
    return Look(at, own + 90.0, own, 40, 17, at / 50, 1.0)


@pytest.fixture
def course() -> Course:
    found = Course("grpcio")
    found.looks = [looked(at) for at in range(0, 3600, 10)]
    for at in range(3600):
        late = 0.004 if at >= 3300 else 0.002
        found.add("plain", Told("right", "hit"), float(at), late)
        found.add("plain", Told("right", "miss"), float(at), 0.9)
    return found


def test_a_slope_is_that_of_the_line() -> None:
    assert slope([(0.0, 1.0), (1.0, 3.0), (3.0, 7.0)]) == pytest.approx(2.0)
    # The errors of an outlier in the middle cancel.
    assert slope([(0.0, 5.0), (1.0, 9.0), (2.0, 5.0)]) == pytest.approx(0.0)


def test_an_hour_that_grows_little_holds(course: Course) -> None:
    figures = figures_of(course, HOUR)
    assert figures["grpcio_memory_slope"].value == pytest.approx(6.0)
    assert figures["grpcio_memory_slope"].goal == 10.0
    assert figures["grpcio_pss_slope"].value == pytest.approx(6.0)
    assert figures["grpcio_requests"].value == 7200
    assert all(figure.holds for figure in figures.values())


def test_two_percent_of_much_is_more(course: Course) -> None:
    course.looks = [replace(x, own=1000.0 + x.at / HOUR * 30) for x in course.looks]
    slope_of = figures_of(course, HOUR)["grpcio_memory_slope"]
    assert slope_of.goal == pytest.approx(20.5, abs=0.1)
    assert not slope_of.holds


def test_warming_up_is_no_growth(course: Course) -> None:
    course.looks = [
        replace(x, own=min(x.at, 1200.0), descriptors=40 - (x.at < 1200))
        for x in course.looks
    ]
    figures = figures_of(course, HOUR)
    assert figures["grpcio_memory_slope"].value == pytest.approx(0.0)
    assert figures["grpcio_descriptors_grown"].value == 0


def test_descriptors_of_a_moment_are_no_growth_and_kept_ones_are(course) -> None:
    busy = [replace(x, descriptors=40 + (x.at % 60 > 0)) for x in course.looks]
    course.looks = busy
    assert figures_of(course, HOUR)["grpcio_descriptors_grown"].value == 0
    course.looks = [
        replace(x, descriptors=x.descriptors + int(x.at // 1200)) for x in busy
    ]
    assert not figures_of(course, HOUR)["grpcio_descriptors_grown"].holds


def test_windows_are_of_hits_alone(course: Course) -> None:
    told = hit_windows(course, HOUR)
    assert [window["hits"] for window in told] == [300] * 12
    assert (told[0]["p99_ms"], told[-1]["p50_ms"]) == (2.0, 4.0)
    assert told[-1]["until_minute"] == 60
    # One that was sent at the very end, or after it, is of the last window.
    assert windows([Seen(25.0, 0.1, "hit")], 24.0) == [[], [], [], [0.1]]


def test_what_was_not_right_is_told_with_its_code(course: Course) -> None:
    course.add("plain", Told("lost", code="UNAVAILABLE: x"), 1.0, 0.1)
    course.add("large", Told("wrong"), 1.0, 0.1)
    course.add("unknown", Told("refused"), 1.0, 0.1)
    figures = figures_of(course, HOUR)
    missed = {name for name, figure in figures.items() if not figure.holds}
    assert missed == {"grpcio_lost", "grpcio_wrong"}
    assert course.codes == {"plain: UNAVAILABLE: x": 1}


def test_a_short_run_is_not_judged_by_its_slope(course: Course) -> None:
    course.looks = [looked(float(at)) for at in range(24)]
    assert figures_of(course, 24.0)["grpcio_memory_slope"].goal is None


def test_a_look_counts_what_is_there() -> None:
    read, write = os.pipe()
    seen = look(os.getpid(), 7.0)
    os.close(read)
    os.close(write)
    assert seen.at == 7.0
    assert 0 < seen.own <= seen.pss
    assert seen.descriptors >= 2
    assert seen.threads >= 1
    assert memory_of("55-7f ---p 0 [rollup]\nPss:  34 kB\nPss_Anon:\t1 kB\n") == {
        "Pss": 34,
        "Pss_Anon": 1,
    }


def test_errors_in_a_log_are_found_among_other_lines() -> None:
    log = '[critical] envoy\n{"level": "error", "event": "x"}\n{"level": "info"}\n3\n{'
    assert soak.complaints(log) == {"x": 1}


def test_the_kinds_are_all_of_the_traffic() -> None:
    assert sum(KINDS.values()) == pytest.approx(1.0)


@pytest.mark.parametrize(
    "wrong",
    [
        ["--only", "grpcio,nobody"],
        ["--rate", "-1"],
        ["--every", "600"],
        ["--without", "nothing"],
        ["--without", ",".join(KINDS)],
    ],
)
def test_what_is_not_understood_is_refused(wrong, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["bench", *wrong])
    with pytest.raises(SystemExit) as ended:
        soak.read_options()
    assert ended.value.code == 2


def test_help_teaches(monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["bench", "--help"])
    with pytest.raises(SystemExit) as ended:
        soak.read_options()
    assert ended.value.code == 0
    assert "--minutes" in capsys.readouterr().out
