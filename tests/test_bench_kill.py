"""What bench.kill makes of the calls that it saw."""

import pytest

from bench import kill


def test_an_outage_is_the_longest_time_without_an_answer() -> None:
    course = kill.Course("killed", ends=[10.0, 20.0])
    ended = [9.0, 9.97, 10.01, 10.4, 10.5, 19.99, 21.5, 21.6, 30.0]
    course.answers = [kill.Answer(t - 0.2, t, "right") for t in ended]
    assert course.outages() == pytest.approx([9.49, 8.4])
    course.answers += [kill.Answer(11.0 + n, 11.5 + n, "right") for n in range(20)]
    assert course.outages() == pytest.approx([1.0, 1.0])
    course.answers.append(kill.Answer(12.0, 13.0, "UNAVAILABLE"))
    assert (course.count("right", "wrong"), len(course.answers)) == (29, 30)
    assert course.p99((12.0, 12.1)) == pytest.approx(1.0)
