"""The memory of failed loads: asked again too soon, a failure is answered from here.

Owns: which lives ended in FAILED, and until when each is remembered. Must not: load.

Without it ten thousand waiters at a broken model would become ten thousand loads.
"""

from collections.abc import Iterable
from typing import Generic

from loader.errors import LoadFailed
from runtime.errors import BackingOff
from runtime.residency import M, Residency, Stage

REMEMBERED = 4096
"""Failures kept at most; each is about 1 KiB. The oldest go first."""
UNEXPECTED_LASTS = 5.0
"""Seconds for an error that is not one of ours: no herd at a model that trips a bug."""


def forget_frames(error: BaseException | None) -> None:
    """A traceback holds every local of every frame it came through; it has been logged.

    An error that is remembered would hold them too: a load's buffers, a call's message.
    """
    while error is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__


class Failures(Generic[M]):
    """FAILED residencies by key."""

    def __init__(self) -> None:
        self._lives: dict[str, Residency[M]] = {}

    def __contains__(self, key: object) -> bool:
        return key in self._lives

    def lives(self) -> Iterable[Residency[M]]:
        """All that is remembered, the oldest first."""
        return self._lives.values()

    def remember(self, life: Residency[M], error: Exception, now: float) -> None:
        """A load failed; how long that is remembered depends on the kind."""
        lasts = error.lasts if isinstance(error, LoadFailed) else UNEXPECTED_LASTS
        forget_frames(error)
        life.failure, life.retry_at = error, now + lasts
        life.move(Stage.FAILED)
        self._lives[life.spec.key] = life
        while len(self._lives) > REMEMBERED:
            self.forget(next(iter(self._lives)))

    def recall(self, key: str, now: float) -> None:
        """Raises what is remembered of `key`, if it is not time to try again."""
        life = self._lives.get(key)
        if life is None:
            return
        left = life.retry_at - now
        if left <= 0:
            self.forget(key)
            return
        failure = life.failure
        assert failure is not None
        if isinstance(failure, LoadFailed) and failure.transient:
            raise BackingOff(
                f"{failure.message}; not tried again for {left:.1f} s", left
            ) from failure
        raise failure.with_traceback(None)

    def forget(self, key: str) -> None:
        """Whoever asks next makes a new attempt."""
        life = self._lives.pop(key, None)
        if life is not None:
            life.move(Stage.GONE)
