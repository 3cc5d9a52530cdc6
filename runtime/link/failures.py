"""Errors across the seam: what was raised there is raised here, of the same class.

Owns: which classes may cross, and their two forms. Must not: let the text of a
stranger's exception through; that stays in the engine's log, under an id.
"""

from collections.abc import Iterator, Mapping

from loader.errors import LoadFailed
from runtime.errors import Refused
from runtime.link.messages import Failed
from runtime.status import FailedElsewhere, answer_to

Ours = LoadFailed | Refused


def _family(kind: type[Exception]) -> Iterator[type[Exception]]:
    yield kind
    for child in kind.__subclasses__():
        yield from _family(child)


KINDS: Mapping[str, type[Exception]] = {
    kind.__name__: kind for root in (LoadFailed, Refused) for kind in _family(root)
}
"""The two closed families, by name."""


def failed(call: int, error: Exception, method: str) -> Failed:
    """An error as a message. One that is not ours is logged here."""
    kind = type(error).__name__
    if KINDS.get(kind) is type(error):
        state = {
            name: value
            for name, value in vars(error).items()
            if value is None or isinstance(value, str | int | float)
        }
        return Failed(call, kind, str(error), state)
    return Failed(call, "", answer_to(error, method).incident, {})


def restored(message: Failed) -> Exception:
    """The error, to be raised here."""
    kind = KINDS.get(message.kind)
    if kind is None:
        return FailedElsewhere(message.text)
    # Not through __init__: each has arguments of its own, and its sentence is made.
    error = kind.__new__(kind, message.text)
    error.__dict__.update(message.state)
    return error
