"""The closed family of things a request can meet besides `loader.errors`.

    Refused
    ├── BadRequest       malformed: shape, datatype, bytes, range, batch too large
    ├── TooLarge         the model is larger than the whole budget
    ├── AnswerTooLarge   the outputs are larger than a message may be
    ├── NoRoom           no room now; come again after `retry_after`
    │   ├── OverQuota    its tenant holds all that it may
    │   └── Thrashing    more is in demand at once than fits; the coldest come later
    ├── QueueFull        too many are waiting already; come again after `retry_after`
    ├── BackingOff       the last load failed; not tried again before `retry_after`
    ├── Draining         the server is going away
    ├── EngineLost       the engine process went while it had this request
    ├── Poisonous        the engine process went because it had this request
    └── DeadlinePassed   the wait outlived the caller's deadline

Owns: the sentences, each safe to show to a client. Must not: know gRPC or HTTP codes
(runtime/status.py has the one table).
"""


class Refused(Exception):
    """A request that was not served, for a reason the caller can act on."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after

    @property
    def message(self) -> str:
        """The client-safe sentence."""
        return str(self)


class BadRequest(Refused):
    """The request cannot be served by this model, whatever the server does."""


class TooLarge(Refused):
    """Larger than the whole budget: refused at once, nothing fetched or evicted."""


class AnswerTooLarge(Refused):
    """The outputs do not fit into one message; ask for fewer of them, or fewer rows."""


class NoRoom(Refused):
    """Everything resident is in use or pinned; waiting did not help."""


class OverQuota(NoRoom):
    """The model's tenant is at its ceiling, and nothing of its own may leave."""


class Thrashing(NoRoom):
    """Models are wanted back as soon as they leave; this one is worth less than they
    are, and is asked to come again."""


class QueueFull(Refused):
    """The bound on waiting requests is reached."""


class BackingOff(Refused):
    """The last load failed with something that may mend itself; not tried yet again."""


class Draining(Refused):
    """The server no longer accepts work."""


class EngineLost(Refused):
    """The engine's process was lost, and is being replaced; nothing was answered."""


class Poisonous(Refused):
    """The engine's process was lost over this very request, and then twice more while
    it was the only suspect: not once again."""


class DeadlinePassed(Refused):
    """The caller's deadline ran out while it waited."""
