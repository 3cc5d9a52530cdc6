"""The one exception of this package.

Owns: how code here says that a call has ended with a status of the protocol's own,
which no service chose. Must not: be raised by services (runtime/errors.py is theirs).
"""

from runtime.status import Status


class Ended(Exception):
    """The call is over; `status` is what the caller is told."""

    def __init__(self, status: Status) -> None:
        super().__init__(status.text)
        self.status = status
