"""The chronicle: what happened to a model, told to all who learn from it.

    the policy and the spiral learn, the observer counts, the decisions remember, the
    log tells the operator

Owns: that list. Must not: decide, or change the cache.
"""

from collections.abc import Callable

import structlog

from eviction.candidates import Candidate
from eviction.policy import Policy
from eviction.spiral import Spiral
from loader.errors import LoadFailed
from loader.manifest import ModelSpec
from runtime.decisions import NO_VERDICT, Decisions, Verdict
from runtime.errors import Refused
from runtime.observer import Observer
from runtime.residency import M, Residency

log = structlog.get_logger()


class Chronicle:
    """`clock`: the cache's."""

    def __init__(
        self,
        policy: Policy,
        spiral: Spiral,
        observer: Observer,
        clock: Callable[[], float],
    ) -> None:
        self._policy = policy
        self._spiral = spiral
        self._observer = observer
        self._clock = clock
        self.decisions = Decisions()

    def loaded(self, life: Residency[M], model: M, waited: float) -> None:
        """It arrived, `waited` seconds after it was wished for."""
        spec, now = life.spec, self._clock()
        self._policy.on_load(spec.key, model.nbytes, life.load_s, now)
        self._observer.loaded(spec, model.nbytes, model.phases, waited)
        self.decisions.loaded(spec, model.nbytes, life.load_s, now)
        if self._spiral.loaded(spec.key):
            event = "spiral" if self._spiral.turning else "spiral over"
            log.warning(event, **self._spiral.told())

    def failed(self, life: Residency[M], error: Exception) -> None:
        """Its load failed."""
        spec, now, kind = life.spec, self._clock(), type(error).__name__
        self._observer.load_failed(spec, kind, now - life.since)
        self.decisions.refused(spec, kind, now)
        told = log.bind(model=spec.name, version=spec.version)
        if isinstance(error, LoadFailed):
            cause = repr(error.__cause__)
            told.warning("load failed", reason=error.message, cause=cause)
        else:
            told.error("load failed", exc_info=error)

    def refused(self, spec: ModelSpec, why: Refused) -> Refused:
        """Nobody gets it now; gives it back, to be raised by whoever asked."""
        self.decisions.refused(spec, type(why).__name__, self._clock())
        return why

    def leaves(
        self,
        life: Residency[M],
        reason: str,
        leaving: Candidate,
        verdict: Verdict = NO_VERDICT,
    ) -> None:
        """It is sent away. The policy is told in the breath of the plan that chose it:
        by the time the bytes are free, other plans have been made."""
        now = self._clock()
        self._policy.on_evict(leaving.model, now)
        self._spiral.evicted(leaving.model, life.load_s, now)
        self.decisions.left(life, reason, leaving, verdict, now)

    def shrunk(self, before: int, capacity: int) -> None:
        """The device has less for us."""
        self.decisions.shrunk(before, capacity, self._clock())

    def gone(self, life: Residency[M], nbytes: int, reason: str) -> None:
        """Its bytes are free."""
        self._observer.evicted(life.spec, nbytes, reason)
