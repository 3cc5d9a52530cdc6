"""An explanation: why a model is here, or is not, with the numbers behind it.

Owns: its shape and its one JSON form, both ways. Must not: find anything out
(runtime/explain.py), or import what serves: `hotset explain` reads it without torch.
Keys are only ever added; a reader takes those it knows.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_json


@dataclass(frozen=True, slots=True)
class Ranked:
    """One that may leave now. `density`: expected seconds of waiting saved per byte
    kept, as the policy sees it; the lowest leaves first."""

    name: str
    version: str
    nbytes: int
    density: float
    reload_s: float
    idle_s: float
    priority: int = 0
    tenant: str = ""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that was decided `ago_s` seconds ago (runtime/decisions.py)."""

    ago_s: float
    what: str
    model: str
    version: str
    reason: str
    nbytes: int
    cause: str
    density: float | None
    rank: int | None
    ranked: int | None
    load_s: float | None
    reload_s: float | None


@dataclass(frozen=True, slots=True)
class Explanation:
    """Of one model version, at one moment.

    `because`: the whole in a sentence. `density`: now; None while it may not leave.
    `rank`: how many would leave before it. `would_push_out`: who leaves if it is asked
    for now; `short`: the bytes that are still missing then. `price`: of a byte here,
    in seconds, by the last eviction.
    """

    model: str
    version: str
    state: str
    because: str
    policy: str
    nbytes: int
    pinned: bool
    priority: int
    tenant: str
    leases: int
    uses: int
    reload_s: float
    density: float | None
    rank: int | None
    price: float
    spiral: bool
    would_push_out: Sequence[Ranked]
    short: int
    ranking: Sequence[Ranked]
    history: Sequence[Event]


class NotAnExplanation(ValueError):
    """These bytes are none; the message says what is missing."""


_explanation = TypeAdapter(Explanation)


def encode(explanation: Explanation) -> bytes:
    """As JSON."""
    return to_json(asdict(explanation))


def decode(data: bytes) -> Explanation:
    """JSON as an explanation; raises NotAnExplanation."""
    try:
        return _explanation.validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the document"
        raise NotAnExplanation(f"{place}: {first['msg']}") from None
