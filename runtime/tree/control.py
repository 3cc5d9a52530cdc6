"""What the supervisor and its children say to each other: rare, small, and with file
descriptors where they belong.

Owns: the messages. Must not: carry requests (runtime/link/).
"""

import socket
from collections.abc import Callable, Sequence

import msgspec

from runtime.link.packets import LARGEST, Packets


class Begin(msgspec.Struct, tag=True):
    """Live. `values`: the settings as they were read once, for all lives, with the
    ports that were taken. `folder`: for an Envoy's files. Descriptors: to a front end,
    its requests' memory, and the HTTP listener if it is ours; to an engine, the host
    tier's files, if there is one."""

    values: dict[str, object]
    folder: str = ""
    residents: list[tuple[str, str]] | None = None
    onednn_from: int | None = None
    restarts: dict[str, int] = {}


class Meet(msgspec.Struct, tag=True):
    """An engine and a front end, introduced. Descriptors: socket, answers' memory, and
    to the engine the requests' memory. `life`: of the engine."""

    life: int


class Stop(msgspec.Struct, tag=True):
    """Drain and end."""


class Up(msgspec.Struct, tag=True):
    """It serves. `about`: for the line that says so."""

    about: dict[str, str | int] = {}


class Unfit(msgspec.Struct, tag=True):
    """It cannot, and why: for whoever started us."""

    reason: str


class Beat(msgspec.Struct, tag=True):
    """The event loop turns."""


class Residents(msgspec.Struct, tag=True):
    """(model, version) of who is in, the last used first."""

    models: list[tuple[str, str]]


class Unlinked(msgspec.Struct, tag=True):
    """A front end has lost its link to the engine of this life."""

    life: int


Message = Begin | Meet | Stop | Up | Unfit | Beat | Residents | Unlinked

_decoder = msgspec.msgpack.Decoder(Message)


class Control(Packets[Message, Message]):
    """One end of it."""

    def __init__(
        self,
        end: socket.socket,
        heard: Callable[[Message, Sequence[int]], None],
        lost: Callable[[], None],
    ) -> None:
        super().__init__(end, _decoder, heard, lost)


def first_of(end: socket.socket) -> Message | None:
    """Wait for the first message without taking it; None if there will be none. What
    came with it is no concern of who only looks."""
    data = end.recv(LARGEST + 4096, socket.MSG_PEEK)
    return _decoder.decode(data) if data else None


def fitting(models: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """As many as one message takes, from the first."""
    room, chosen = LARGEST // 2, []
    for name, version in models:
        room -= len(name) + len(version) + 8
        if room < 0:
            break
        chosen.append((name, version))
    return chosen
