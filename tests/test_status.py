import json

import pytest
import structlog
from google.protobuf.any_pb2 import Any
from google.rpc import error_details_pb2, status_pb2

import loader.errors
import runtime.errors
from loader.errors import (
    ArtifactRefused,
    DeviceFull,
    DeviceLost,
    LoadFailed,
    ModelNotFound,
    StoreDenied,
    StoreUnreachable,
)
from runtime.errors import (
    AnswerTooLarge,
    BackingOff,
    BadRequest,
    DeadlinePassed,
    Draining,
    EngineLost,
    NoRoom,
    OverQuota,
    Poisonous,
    QueueFull,
    Refused,
    Thrashing,
    TooLarge,
)
from runtime.status import MAX_TEXT, Code, answer_to, sayable, status_of

ROWS = [
    (ModelNotFound("m"), Code.NOT_FOUND, 404, None),
    (ModelNotFound("m", "9"), Code.NOT_FOUND, 404, None),
    (BadRequest("no"), Code.INVALID_ARGUMENT, 400, None),
    (ArtifactRefused("graph.json", "no"), Code.FAILED_PRECONDITION, 422, None),
    (TooLarge("no"), Code.FAILED_PRECONDITION, 422, None),
    (AnswerTooLarge("no"), Code.RESOURCE_EXHAUSTED, 422, None),
    (NoRoom("no", retry_after=2.5), Code.RESOURCE_EXHAUSTED, 429, 2.5),
    (OverQuota("no", retry_after=2.5), Code.RESOURCE_EXHAUSTED, 429, 2.5),
    (Thrashing("no", retry_after=2.5), Code.RESOURCE_EXHAUSTED, 429, 2.5),
    (NoRoom("no"), Code.RESOURCE_EXHAUSTED, 429, 1.0),
    (QueueFull("no", retry_after=0.0), Code.RESOURCE_EXHAUSTED, 429, 0.0),
    (DeviceFull("no"), Code.RESOURCE_EXHAUSTED, 429, 1.0),
    (StoreUnreachable("no"), Code.UNAVAILABLE, 503, 2.0),
    (StoreDenied("no"), Code.UNAVAILABLE, 503, 30.0),
    (DeviceLost("no"), Code.UNAVAILABLE, 503, 60.0),
    (BackingOff("no", retry_after=7), Code.UNAVAILABLE, 503, 7),
    (Draining("no"), Code.UNAVAILABLE, 503, 1.0),
    (EngineLost("no"), Code.UNAVAILABLE, 503, 1.0),
    (Poisonous("no"), Code.FAILED_PRECONDITION, 422, None),
    (DeadlinePassed("no"), Code.DEADLINE_EXCEEDED, 504, None),
]


@pytest.mark.parametrize(("error", "code", "http", "retry"), ROWS)
def test_the_table(error, code, http, retry):
    status = status_of(error)
    assert (status.code, status.http, status.retry) == (code, http, retry)
    assert status.text == str(error)
    assert not status.incident


def test_every_error_of_the_two_families_has_a_row():
    families = {LoadFailed, Refused}
    named = {
        kind
        for module in (loader.errors, runtime.errors)
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, tuple(families))
    }
    tested = {type(error) for error, *_ in ROWS}
    assert named - families == tested


def test_a_subtype_without_a_row_takes_its_ancestors():
    class Fussier(BadRequest):
        pass

    assert status_of(Fussier("no")).code is Code.INVALID_ARGUMENT


@pytest.mark.parametrize(
    "error",
    [
        ValueError("s3://AKIAEXAMPLE:secret@bucket/weights"),
        RuntimeError("CUDA error: device-side assert"),
        KeyError("/etc/passwd"),
        TimeoutError(),
        LoadFailed("a base class says nothing that was written for a client"),
    ],
)
def test_anything_else_is_internal_and_says_nothing(error):
    status = status_of(error)
    assert (status.code, status.http, status.retry) == (Code.INTERNAL, 500, None)
    assert status.text == f"internal error, id {status.incident}"
    assert len(status.incident) == 16


def test_no_two_incidents_share_an_id():
    assert len({status_of(ValueError()).incident for _ in range(100)}) == 100


def test_the_log_has_the_cause_under_the_id_and_nothing_else():
    with structlog.testing.capture_logs() as logs:
        error = ValueError("the secret cause")
        status = answer_to(error, "/inference/ModelInfer")
        answer_to(BadRequest("the caller's own fault"), "/inference/ModelInfer")
    (entry,) = logs
    assert entry["incident"] == status.incident
    assert entry["method"] == "/inference/ModelInfer"
    assert entry["exc_info"] is error


def test_a_hint_travels_as_retry_info():
    details = status_of(NoRoom("come again", retry_after=2.5)).details
    said = status_pb2.Status.FromString(details)
    assert (said.code, said.message) == (8, "come again")
    hint = error_details_pb2.RetryInfo()
    assert isinstance(said.details[0], Any)
    assert said.details[0].Unpack(hint)
    assert hint.retry_delay.ToTimedelta().total_seconds() == 2.5


def test_no_hint_no_details():
    assert status_of(BadRequest("no")).details is None


@pytest.mark.parametrize("bad", ["\n", "\r", "\x1b[31m", "\x00", "\u2028", "\u202e"])
def test_a_text_is_one_printable_line(bad):
    said = sayable(f"input 'a{bad}b' is unknown")
    assert said.isprintable()
    assert len(said.splitlines()) == 1
    assert said.startswith("input 'a")
    assert json.loads(json.dumps(said)) == said


@pytest.mark.parametrize("char", ["a", "é", "語", "🙂"])
def test_a_text_is_cut_to_a_kilobyte_between_characters(char):
    said = sayable(char * 5000)
    assert len(said.encode()) <= MAX_TEXT
    assert len(said.encode()) > MAX_TEXT - 4
    assert set(said) == {char}


def test_a_text_is_looked_at_no_further_than_it_is_sent():
    """A name in it may be as long as a message, and the event loop waits meanwhile."""
    looked = 0

    class Text(str):
        def __getitem__(self, key):
            return Text(super().__getitem__(key))

        def __iter__(self):
            nonlocal looked
            for char in super().__iter__():
                looked += 1
                yield char

    assert sayable(Text("a" * 100_000 + "\n")) == "a" * MAX_TEXT
    assert sayable(Text("\n" * 100_000)) == "?" * MAX_TEXT
    assert looked <= MAX_TEXT


def test_a_text_of_lone_surrogates_can_still_be_sent():
    assert sayable("\ud800" * 2000).encode()
