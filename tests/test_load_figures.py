"""What bench.load makes of its rows: medians, ratios, and who was absent."""

import pytest

from bench.load_results import FAR, LOCAL, NEAR, Results, details, figures


@pytest.fixture
def results() -> Results:
    results = Results()
    rows = [
        (LOCAL, 4, "hotset", 0.002, {}),
        (LOCAL, 4, "memcpy", 0.0001, {}),
        (LOCAL, 4, "pread", 0.001, {}),
        (LOCAL, 4, "pread + BLAKE3", 0.0016, {}),
        (LOCAL, 4, "tensorizer", 0.010, {}),
        (LOCAL, 4, "safetensors pread", 0.004, {}),
        (LOCAL, 200, "hotset", 0.030, {}),
        (LOCAL, 200, "memcpy", 0.020, {}),
        (NEAR, 200, "hotset", 0.220, {}),
        (NEAR, 200, "single stream", 0.200, {}),
        (FAR, 4, "hotset", 0.038, {"gets": 1, "connections": 1}),
        (FAR, 4, "hotset", 0.036, {"gets": 2, "connections": 1}),
        (FAR, 4, "boto3 + safetensors", 0.040, {"gets": 1, "connections": 1}),
        (FAR, 4, "tensorizer", 0.185, {"gets": 2, "connections": 3}),
        (FAR, 4, "single stream", 0.035, {"gets": 1, "connections": 0}),
    ]
    for source, size, name, seconds, more in rows:
        row = {"name": name, "size": size, "seconds": seconds, "cpu": seconds, **more}
        assert results.told(source, row)
    return results


def test_goals_are_judged_by_medians(results: Results) -> None:
    found = {name: (f.value, f.holds) for name, f in figures(results).items()}
    assert found["local_4mb_to_best_library"] == (pytest.approx(0.5), True)
    assert found["local_200mb_to_memcpy"] == (pytest.approx(1.5), False)
    assert found["far_4mb_ms"] == (pytest.approx(37.0), True)
    assert found["far_4mb_to_best_library"] == (pytest.approx(0.925), False)
    assert found["far_4mb_to_best_model_loader"] == (pytest.approx(0.2), True)
    assert found["s3_200mb_to_single_stream"] == (pytest.approx(1.1), True)
    assert found["gets_4mb"] == (2, False)  # the worst round counts
    assert "s3_200mb_cpu_to_runai" not in found  # it was not there


def test_bounds_are_of_the_same_run_and_judge_nobody(results: Results) -> None:
    found = {name: (f.value, f.goal) for name, f in figures(results).items()}
    assert found["bound_pread_4mb_to_best_library"] == (pytest.approx(0.25), None)
    assert found["bound_pread_and_hash_4mb_to_best_library"][0] == pytest.approx(0.4)
    assert found["local_4mb_to_pread_and_hash"] == (pytest.approx(1.25), None)
    far = found["bound_single_stream_far_4mb_to_best_library"]
    assert far == (pytest.approx(0.875), None)
    assert "bound_pread_200mb_to_memcpy" not in found  # nobody measured it


def test_who_is_absent_is_told(results: Results) -> None:
    assert not results.told(LOCAL, {"name": "tensorizer", "missing": "no module"})
    assert not results.told(FAR, {"name": "Run:ai", "failed": "wrong bytes in x"})
    said = details(results, {LOCAL: {4: 1}})
    assert said["absent"] == {
        "tensorizer, page cache": "no module",
        "Run:ai, s3 far": "wrong bytes in x",
    }
    assert len(said["seen"]) == 14
