"""What went wrong -> what the caller is told: the one table.

Owns: the gRPC code, the HTTP code and the retry hint of every error type, the last look
at a text before it leaves, and the log line for what the caller is not told. Must not:
import grpc (the front ends and REST share this), or let a text through that nobody
wrote for a client.

An error type that is not in the table, nor any of its ancestors, is a bug of ours: the
caller gets a fixed sentence with a random id, and only the log, under that id, the
cause.
"""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

import structlog
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2

from loader.errors import (
    ArtifactRefused,
    DeviceFull,
    DeviceLost,
    LoadFailed,
    ModelNotFound,
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

_log = structlog.get_logger()

MAX_TEXT = 1024
"""Bytes of a status text. Past 16 KiB of metadata a client sees RESOURCE_EXHAUSTED
instead of our code; nobody reads past the first line anyway."""

DETAILS_KEY = "grpc-status-details-bin"
"""Trailing metadata that carries a google.rpc.Status."""


class Code(IntEnum):
    """The gRPC codes we use, by their numbers."""

    OK = 0
    CANCELLED = 1
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14


class UnknownService(Exception):
    """Health was asked about a service this server does not have."""


class FailedElsewhere(Exception):
    """A bug of ours in another process, whose log has the cause under `incident`."""

    def __init__(self, incident: str) -> None:
        super().__init__(incident)
        self.incident = incident


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. `retry`: seconds until trying again makes sense; None if
    the same request will fail the same way."""

    code: Code
    http: int
    retry: float | None = None


TABLE: Mapping[type[Exception], Row] = {
    ModelNotFound: Row(Code.NOT_FOUND, 404),
    UnknownService: Row(Code.NOT_FOUND, 404),
    BadRequest: Row(Code.INVALID_ARGUMENT, 400),
    ArtifactRefused: Row(Code.FAILED_PRECONDITION, 422),
    TooLarge: Row(Code.FAILED_PRECONDITION, 422),
    # The code that grpc itself has for a message over the limit.
    AnswerTooLarge: Row(Code.RESOURCE_EXHAUSTED, 422),
    NoRoom: Row(Code.RESOURCE_EXHAUSTED, 429, retry=1.0),
    OverQuota: Row(Code.RESOURCE_EXHAUSTED, 429, retry=1.0),
    Thrashing: Row(Code.RESOURCE_EXHAUSTED, 429, retry=1.0),
    QueueFull: Row(Code.RESOURCE_EXHAUSTED, 429, retry=1.0),
    DeviceFull: Row(Code.RESOURCE_EXHAUSTED, 429, retry=DeviceFull.lasts),
    StoreUnreachable: Row(Code.UNAVAILABLE, 503, retry=StoreUnreachable.lasts),
    DeviceLost: Row(Code.UNAVAILABLE, 503, retry=DeviceLost.lasts),
    BackingOff: Row(Code.UNAVAILABLE, 503, retry=1.0),
    # Another replica may answer at once; this one will not come back.
    EngineLost: Row(Code.UNAVAILABLE, 503, retry=1.0),
    # What gRPC has for "do not try again until somebody has mended something".
    Poisonous: Row(Code.FAILED_PRECONDITION, 422),
    Draining: Row(Code.UNAVAILABLE, 503, retry=1.0),
    DeadlinePassed: Row(Code.DEADLINE_EXCEEDED, 504),
}
"""Error type -> row; a subtype without its own row takes its nearest ancestor's."""

INTERNAL = Row(Code.INTERNAL, 500)


@dataclass(frozen=True, slots=True)
class Status:
    """What a caller is told. `incident`: the id under which the log has the cause, for
    errors that are ours; empty for all others."""

    code: Code
    http: int
    text: str
    retry: float | None = None
    incident: str = ""

    @property
    def details(self) -> bytes | None:
        """A serialised google.rpc.Status with the RetryInfo, if there is a hint."""
        if self.retry is None:
            return None
        delay = Duration()
        delay.FromNanoseconds(int(self.retry * 1e9))
        hint = AnyMessage()
        hint.Pack(error_details_pb2.RetryInfo(retry_delay=delay))
        status = status_pb2.Status(code=self.code, message=self.text, details=[hint])
        return bytes(status.SerializeToString())


def status_of(error: Exception) -> Status:
    """The table's answer for an error, its text fit to be sent."""
    row = next((TABLE[kind] for kind in type(error).__mro__ if kind in TABLE), None)
    if row is None:
        incident = (
            error.incident
            if isinstance(error, FailedElsewhere)
            else secrets.token_hex(8)
        )
        text = f"internal error, id {incident}"
        return Status(INTERNAL.code, INTERNAL.http, text, incident=incident)
    return Status(row.code, row.http, sayable(str(error)), _retry(error, row))


def answer_to(error: Exception, method: str) -> Status:
    """What to tell the caller of `method`; an error of ours goes to the log as well."""
    status = status_of(error)
    if status.incident and not isinstance(error, FailedElsewhere):
        _log.error(
            "a request failed inside",
            incident=status.incident,
            method=method,
            exc_info=error,
        )
    return status


def sayable(text: str) -> str:
    """`text` as one printable line of at most MAX_TEXT bytes.

    A name with a newline or an escape in it must not write log lines or colour the
    terminals of others (CWE-117).
    """
    # Cut first: a name may be as long as a message, and what follows looks at each of
    # its characters on the event loop.
    text = text[:MAX_TEXT]
    if not text.isprintable():
        text = "".join(char if char.isprintable() else "?" for char in text)
    if len(text) > MAX_TEXT // 4:  # no character takes more than 4 bytes
        text = text.encode()[:MAX_TEXT].decode(errors="ignore")
    return text


def _retry(error: Exception, row: Row) -> float | None:
    """The error's own hint, else its kind's; none where the table has none."""
    if row.retry is None:
        return None
    if isinstance(error, LoadFailed):
        return error.lasts
    if isinstance(error, Refused) and error.retry_after is not None:
        return max(error.retry_after, 0.0)
    return row.retry
