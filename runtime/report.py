"""The status report: what `/hotset/status` says and `hotset top` and `ls` read.

Owns: its one JSON form, both ways. Must not: collect anything, or know HTTP.

    {"name": ..., "version": ..., "ready": ..., <the fields of a Snapshot>}

Keys are only ever added; a reader takes those it knows.
"""

from dataclasses import asdict, dataclass

from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_json

from runtime.engine import Snapshot


@dataclass(frozen=True, slots=True)
class About:
    """Which server speaks."""

    name: str
    version: str
    ready: bool


@dataclass(frozen=True, slots=True)
class Report:
    """A server and its cache at one moment."""

    about: About
    snapshot: Snapshot


class NotAReport(ValueError):
    """These bytes are no status report; the message says what is missing."""


_about = TypeAdapter(About)
_snapshot = TypeAdapter(Snapshot)


def encode(report: Report) -> bytes:
    """The report as JSON."""
    return to_json({**asdict(report.about), **asdict(report.snapshot)})


def decode(data: bytes) -> Report:
    """JSON as a report; raises NotAReport."""
    try:
        return Report(_about.validate_json(data), _snapshot.validate_json(data))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the document"
        raise NotAReport(f"{place}: {first['msg']}") from None
