"""What a front end and an engine say to each other, in MessagePack.

Owns: the messages and their one form on the socket. Must not: send anything, or carry
an object that brings code along (no pickle): every field is typed, and read strictly.

A call is asked once and ends in exactly one Answered, Told or Failed, a cancelled one
too: only then may the front end use its shared memory for something else.
Deadlines are on CLOCK_MONOTONIC, which is the clock of every event loop on a host.
"""

from collections.abc import Sequence

import msgspec

from loader.manifest import ModelSpec
from runtime.engine import IndexEntry, ModelStatistics, Snapshot, Temperature
from runtime.explanation import Explanation


class Part(msgspec.Struct, array_like=True, gc=False):
    """A tensor: its bytes, or (start, length) of where they lie in shared memory."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: bytes | tuple[int, int]


# ---- a front end to the engine ----------------------------------------------------


class Predict(msgspec.Struct, array_like=True, tag=1):
    """`suspect`: an engine was lost while it had this request; run it alone."""

    call: int
    model: str
    version: str
    outputs: tuple[str, ...]
    id: str
    deadline: float | None
    inputs: list[Part]
    suspect: bool = False


class Ask(msgspec.Struct, array_like=True, tag=2):
    """Everything but a predict. `word`: what else the question needs."""

    call: int
    what: str
    model: str = ""
    version: str = ""
    deadline: float | None = None
    word: str = ""


class Cancel(msgspec.Struct, array_like=True, tag=3):
    """Nobody waits for this call any more."""

    call: int


class Free(msgspec.Struct, array_like=True, tag=4):
    """The answer that lies there has been read."""

    start: int


Question = Predict | Ask | Cancel | Free

# ---- the engine to a front end ----------------------------------------------------


class Answered(msgspec.Struct, array_like=True, tag=1):
    """A predict's answer."""

    call: int
    model: str
    version: str
    temperature: Temperature
    outputs: list[Part]


class Told(msgspec.Struct, array_like=True, tag=2):
    """What an Ask gave; RESULTS says of which type."""

    call: int
    value: msgspec.Raw


class Failed(msgspec.Struct, array_like=True, tag=3):
    """An error of ours (runtime/link/failures.py), or with `kind` "" an incident."""

    call: int
    kind: str
    text: str
    state: dict[str, str | int | float | None]


class Ready(msgspec.Struct, array_like=True, tag=4):
    """Told at the beginning, and when it changes."""

    ready: bool


Reply = Answered | Told | Failed | Ready

RESULTS: dict[str, msgspec.msgpack.Decoder[object]] = {
    "describe": msgspec.msgpack.Decoder(ModelSpec),
    "versions": msgspec.msgpack.Decoder(list[str]),
    "servable": msgspec.msgpack.Decoder(bool),
    "load": msgspec.msgpack.Decoder(None),
    "unload": msgspec.msgpack.Decoder(None),
    "index": msgspec.msgpack.Decoder(list[IndexEntry]),
    "statistics": msgspec.msgpack.Decoder(list[ModelStatistics]),
    "snapshot": msgspec.msgpack.Decoder(Snapshot),
    "explain": msgspec.msgpack.Decoder(Explanation),
    "drain": msgspec.msgpack.Decoder(None),
    "exposition": msgspec.msgpack.Decoder(tuple[bytes, str]),
}
"""What may be asked, and what it gives."""

_encoder = msgspec.msgpack.Encoder()
questions = msgspec.msgpack.Decoder(list[Question])
replies = msgspec.msgpack.Decoder(list[Reply])


def encoded(messages: Sequence[object]) -> bytes:
    """A batch of messages, or one value."""
    return _encoder.encode(messages)


def raw(value: object) -> msgspec.Raw:
    """A value to go into Told."""
    return msgspec.Raw(_encoder.encode(value))
