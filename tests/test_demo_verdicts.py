"""The oracle's verdicts and the checks of the summary: each can fail."""

import dataclasses
import io

import numpy as np
import pytest
from rich.console import Console

from runtime.demo.oracle import CPU_TOLERANCE, GPU_TOLERANCE, Oracle, tolerance
from runtime.demo.report import (
    Check,
    Latency,
    Served,
    Summary,
    latencies,
    rate,
    show_checks,
    show_numbers,
)
from runtime.demo.stream import ANSWERED, Answers, Stream, Target

MODELS, IMAGES, CLASSES = 4, 6, 10
LABELS = np.array([3, 1, 4, 1, 5, 9])


def perfect_oracle():
    """Every model scores highest for the label, each in its own order."""
    dice = np.random.default_rng(5)
    orders = np.array([dice.permutation(CLASSES) for _ in range(MODELS)])
    scores = dice.normal(size=(MODELS, IMAGES, CLASSES)).astype(np.float32)
    for model in range(MODELS):
        for image in range(IMAGES):
            place = int(np.flatnonzero(orders[model] == LABELS[image])[0])
            scores[model, image, place] = 9.0
    return Oracle(scores, orders, LABELS, 1e-4)


def all_pairs():
    model, image = np.divmod(np.arange(MODELS * IMAGES), IMAGES)
    targets = tuple(Target(f"m{i}", "x", (1,)) for i in range(MODELS))
    return Stream(targets, np.zeros((IMAGES, 1), np.float32), model, image)


def own_answers(oracle, stream):
    answers = Answers.none_yet(len(stream), CLASSES)
    answers.scores[:] = oracle.references[stream.model, stream.image]
    answers.code[:] = ANSWERED
    answers.temperature[:] = np.arange(len(stream)) % 3
    answers.seconds[:] = 0.001 * (1 + np.arange(len(stream)))
    return answers


def test_own_answers_are_right():
    oracle, stream = perfect_oracle(), all_pairs()
    verdicts = oracle.judge(stream, own_answers(oracle, stream))
    assert verdicts.wrong_model == 0
    assert verdicts.accuracy == 1.0


def test_last_bits_do_not_matter():
    oracle, stream = perfect_oracle(), all_pairs()
    answers = own_answers(oracle, stream)
    answers.scores[:] += 0.4 * oracle.tolerance
    assert oracle.judge(stream, answers).wrong_model == 0


def test_an_answer_of_another_model_is_found():
    oracle, stream = perfect_oracle(), all_pairs()
    answers = own_answers(oracle, stream)
    answers.scores[7] = oracle.references[3, stream.image[7]]
    assert stream.model[7] != 3
    verdicts = oracle.judge(stream, answers)
    assert np.flatnonzero(verdicts.answered & ~verdicts.own).tolist() == [7]
    assert verdicts.accuracy < 1.0


def test_an_answer_to_another_image_is_found():
    oracle, stream = perfect_oracle(), all_pairs()
    answers = own_answers(oracle, stream)
    # the same digit, so that accuracy alone would not notice
    assert LABELS[1] == LABELS[3]
    answers.scores[1] = oracle.references[0, 3]
    verdicts = oracle.judge(stream, answers)
    assert verdicts.wrong_model == 1
    assert verdicts.accuracy == 1.0


def test_nan_is_nobodys_answer():
    oracle, stream = perfect_oracle(), all_pairs()
    answers = own_answers(oracle, stream)
    answers.scores[2, 0] = np.nan
    assert oracle.judge(stream, answers).wrong_model == 1


def test_a_failed_request_is_neither_right_nor_wrong():
    oracle, stream = perfect_oracle(), all_pairs()
    answers = own_answers(oracle, stream)
    answers.code[0] = 8
    answers.scores[0] = 0
    verdicts = oracle.judge(stream, answers)
    assert int(verdicts.answered.sum()) == len(stream) - 1
    assert verdicts.wrong_model == 0
    assert verdicts.accuracy == 1.0


def test_separation_is_the_nearest_pair_on_one_image():
    oracle = perfect_oracle()
    oracle.references[2, 5] = oracle.references[0, 5]
    oracle.references[2, 5, 4] += 0.125
    assert oracle.separation() == pytest.approx(0.125, abs=1e-6)


def test_a_gpu_is_given_more_room():
    assert tolerance("cpu") == CPU_TOLERANCE
    assert tolerance("cuda:0") == GPU_TOLERANCE


def test_the_rate_is_of_the_crowded_part():
    oracle = perfect_oracle()
    stream = dataclasses.replace(all_pairs(), alone=4)
    answers = own_answers(oracle, stream)
    answers.at[:] = 0.5 * (1 + np.arange(len(stream)))
    answers.code[0] = 14
    assert rate(stream, answers, oracle.judge(stream, answers)) == 19 / 10.0


def test_latency_is_split_by_temperature():
    oracle, stream = perfect_oracle(), all_pairs()
    answers = own_answers(oracle, stream)
    answers.code[0] = 14  # a failed hit counts nowhere
    verdicts = oracle.judge(stream, answers)
    found = latencies(answers, verdicts, slice(None))
    assert {name: each.count for name, each in found.items()} == {
        "hit": 7,
        "wait": 8,
        "miss": 8,
    }
    assert found["hit"].p50 == pytest.approx(13.0)  # 4, 7, ..., 22 ms
    end = latencies(answers, verdicts, slice(20, None))
    assert [end[name].count for name in ("hit", "wait", "miss")] == [1, 1, 2]
    assert end["hit"].p99 == pytest.approx(22.0)


GOOD = Summary(
    models=200,
    asked_models=200,
    total_bytes=400,
    requests=1000,
    concurrency=16,
    answered=1000,
    wrong_model=0,
    accuracy=0.97,
    separation=0.5,
    tolerance=1e-4,
    rate=850.0,
    crowded={
        "hit": Latency(500, 1, 2),
        "wait": Latency(100, 3, 4),
        "miss": Latency(250, 5, 6),
    },
    alone={
        "hit": Latency(100, 1, 2),
        "wait": Latency(0, 0, 0),
        "miss": Latency(50, 5, 6),
    },
    served=Served(
        device="cpu",
        policy="gdsf",
        capacity=100,
        peak=100,
        most_seen=90,
        loads=300,
        evictions=250,
        exit_code=0,
    ),
)


def served(**changed):
    return {"served": dataclasses.replace(GOOD.served, **changed)}


def test_a_good_run_holds_and_says_so():
    assert GOOD.holds
    console = Console(record=True, width=200, file=io.StringIO())
    show_numbers(GOOD, console)
    show_checks(GOOD, console)
    text = console.export_text()
    assert "60.0%" in text
    assert "97.00%" in text
    assert "FAILS" not in text


@pytest.mark.parametrize(
    ("changed", "claim"),
    [
        ({"answered": 999}, "every request is answered"),
        ({"accuracy": 0.949}, "accuracy is at least 95%"),
        ({"wrong_model": 1}, "no answer comes from another model"),
        ({"separation": 1e-4}, "any two models answer differently"),
        ({"total_bytes": 399}, "the models are at least 4 times the budget"),
        (served(peak=101), "the budget is never exceeded"),
        (served(most_seen=101), "the budget is never exceeded"),
        (served(peak=0, most_seen=0), "the budget is never exceeded"),
        (served(evictions=0), "models are evicted"),
        (served(exit_code=None), "the server ends cleanly on SIGTERM"),
        (served(exit_code=1), "the server ends cleanly on SIGTERM"),
        (
            {"crowded": GOOD.crowded | {"wait": Latency(99, 3, 4)}},
            "the server says of every answer",
        ),
        (
            {
                "crowded": GOOD.crowded | {"miss": Latency(0, 0, 0)},
                "alone": GOOD.alone | {"miss": Latency(0, 0, 0)},
            },
            "models are evicted, and hits and misses occur",
        ),
    ],
)
def test_each_failed_check_is_named(changed, claim):
    bad = dataclasses.replace(GOOD, **changed)
    failed = [check for check in bad.checks() if not check.holds]
    assert any(check.claim.startswith(claim) for check in failed)
    assert not bad.holds
    console = Console(record=True, width=200, file=io.StringIO())
    show_checks(bad, console)
    assert f"failed: {failed[0].claim}" in console.export_text()


def test_a_check_is_a_sentence():
    for check in GOOD.checks():
        assert isinstance(check, Check)
        assert check.found
