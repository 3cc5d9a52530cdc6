"""JSON from strangers, read strictly.

Owns: one way to parse (UTF-8, no duplicate key, no NaN, no infinity, bounded size and
depth) and the typed look-ups every format of ours is checked with. Must not: know any
format; each caller names its own places.

Python's own reader takes NaN, Infinity, 1e999, duplicate keys (the last wins) and
UTF-16, and recurses as deep as the document says; each of those is refused here before
it can mean something else to somebody else.
"""

import json
import math
import re
from collections.abc import Collection
from typing import NoReturn

from loader.errors import ArtifactRefused

MAX_DEPTH = 16
"""Our deepest document (an argument list in a node in a graph) nests six levels."""

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1

# Always matches once it starts (possessive, and the closing quote may be missing), so
# hostile input costs one pass.
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+"?', re.DOTALL)
_LEAVES = re.compile(rb"\[\]|\{\}")
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def parse(data: bytes, place: str, limit: int) -> object:
    """The document, or ArtifactRefused at `place`."""
    if len(data) > limit:
        raise ArtifactRefused(place, f"{len(data)} bytes, the limit is {limit}")
    if _deeper_than(data, MAX_DEPTH):
        raise ArtifactRefused(
            place, f"not JSON, or nested deeper than {MAX_DEPTH} levels"
        )
    try:
        document: object = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_object,
            parse_float=_finite,
            parse_constant=_constant,
        )
    except _Refused as error:
        raise ArtifactRefused(place, str(error)) from None
    except (ValueError, RecursionError):
        # ValueError: not UTF-8, not JSON, or an integer of more than 4,300 digits.
        raise ArtifactRefused(place, "not a JSON document") from None
    return document


class _Refused(Exception):
    """JSON, but of a kind we do not take."""


def _deeper_than(data: bytes, depth: int) -> bool:
    """True if brackets nest deeper (or do not match at all); never recurses."""
    brackets = _STRING.sub(b"", data).translate(None, _NOT_BRACKETS)
    for _ in range(depth):
        if not brackets:
            return False
        brackets = _LEAVES.sub(b"", brackets)  # one level: nothing is scanned twice
    return bool(brackets)


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in pairs:
        if key in found:
            raise _Refused(f"key {shown(key)} twice")
        found[key] = value
    return found


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise _Refused("a number too large for a float")
    return number


def _constant(text: str) -> NoReturn:
    raise _Refused(f"{text} is not JSON")


def shown(value: object, longest: int = 64) -> str:
    """A value of a stranger as it may stand in a message: short, printable ASCII."""
    text = ascii(value)
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def members(
    value: object, place: str, required: Collection[str], optional: Collection[str] = ()
) -> dict[str, object]:
    """An object with exactly these keys."""
    if not isinstance(value, dict):
        raise ArtifactRefused(place, "must be an object")
    for key in required:
        if key not in value:
            raise ArtifactRefused(place, f"key '{key}' is missing")
    for key in value:
        if key not in required and key not in optional:
            raise ArtifactRefused(place, f"unknown key {shown(key)}")
    return value


def array(value: object, place: str, longest: int) -> list[object]:
    """A list of at most `longest` items."""
    if not isinstance(value, list):
        raise ArtifactRefused(place, "must be a list")
    if len(value) > longest:
        raise ArtifactRefused(place, f"{len(value)} items, the limit is {longest}")
    return value


def integer(value: object, place: str, low: int, high: int) -> int:
    """An integer in [low, high]; true and 1.0 are not integers."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise ArtifactRefused(place, "must be an integer")
    if not low <= value <= high:
        raise ArtifactRefused(place, f"must be from {low} to {high}")
    return value


def boolean(value: object, place: str) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise ArtifactRefused(place, "must be true or false")
    return value


def text(value: object, place: str, pattern: re.Pattern[str], meant: str) -> str:
    """A string that matches `pattern` from end to end; `meant` says it in words."""
    if not isinstance(value, str):
        raise ArtifactRefused(place, "must be a string")
    if pattern.fullmatch(value) is None:
        raise ArtifactRefused(place, f"{shown(value)} is not {meant}")
    return value
