"""A shadow cache: what an expert would hold, by name and size, without the bytes.

Owns: one expert's residents and its bill. Must not: answer for the real cache.

A full scan for every shadow miss would make a request as dear as the cache is large. So
one scan serves several evictions: its lowest ranks wait in a queue, one that was used
meanwhile is passed over, and one that came meanwhile is weighed against the next to
leave: left out, newcomers would be safer here than in the real cache, and an expert
that wastes them would look better than it is. Small caches are scanned each time.
"""

from collections.abc import Sequence, Set

from eviction.policy import Policy

EXACT_BELOW = 32
"""Residents per eviction that one scan serves: a sixteenth of them at most leave."""

Request = tuple[str, float, bool]
"""What a policy is told of one: model, now, whether the real cache has it."""


class Shadow:
    """`told`: the expert is told of requests and loads by somebody else."""

    def __init__(self, name: str, policy: Policy, told: bool = False) -> None:
        self.name = name
        self.policy = policy
        self.bill = 0.0
        self._told = told
        self._held = 0
        self._resident: dict[str, tuple[int, float]] = {}  # bytes, reload_s
        self._queue: list[str] = []  # the next to leave at the end
        # Since the scan that made the queue:
        self._used: set[str] = set()
        self._came: dict[str, None] = {}

    def __repr__(self) -> str:
        return f"<Shadow {self.name}: {len(self._resident)} hold {self._held} bytes>"

    def request(self, model: str, now: float) -> bool:
        """Whether the shadow has it."""
        resident = model in self._resident
        if resident and self._queue:
            self._used.add(model)
        if not self._told:
            self.policy.on_request(model, now, resident)
        return resident

    def has(self, models: Set[str]) -> bool:
        """Whether a request for none of them would be a miss."""
        return self._resident.keys() >= models

    def hit(self, requests: Sequence[Request], models: Set[str]) -> None:
        """`request` for each of them; it `has` all their models."""
        if self._queue:
            self._used |= models
        if not self._told:
            for model, now, _ in requests:
                self.policy.on_request(model, now, True)

    def load(
        self, model: str, nbytes: int, reload_s: float, now: float, budget: int | None
    ) -> None:
        """Bring it in, unless it is there; evict by the expert's own density."""
        old = self._resident.get(model)
        self._came.pop(model, None)
        if old is not None:
            self._held -= old[0]
        if budget is not None and nbytes <= budget < self._held + nbytes:
            self._resident.pop(model, None)  # nobody leaves for its own sake
            while self._held + nbytes > budget:
                self._evict(now)
        # In its place, if it was there: of equals the first one leaves.
        self._resident[model] = (nbytes, reload_s)
        self._held += nbytes
        if self._queue:
            self._came[model] = None
        if old is None and not self._told:
            self.policy.on_load(model, nbytes, reload_s, now)

    def forget(self, model: str) -> None:
        """It no longer exists."""
        self._came.pop(model, None)
        gone = self._resident.pop(model, None)
        if gone is not None:
            self._held -= gone[0]
        if not self._told:
            self.policy.forget(model)

    def _evict(self, now: float) -> None:
        """The lowest of the queue, or one that came since and is worth less yet."""
        model = self._queued()
        model = self._lowest([model, *self._came], now) if model else self._scan(now)
        self._held -= self._resident.pop(model)[0]
        self._came.pop(model, None)
        if not self._told:
            self.policy.on_evict(model, now)

    def _queued(self) -> str:
        """The next of the queue that still is there and was not used since."""
        while self._queue:
            model = self._queue[-1]
            if model in self._resident and model not in self._used:
                return model
            self._queue.pop()
        return ""

    def _lowest(self, models: Sequence[str], now: float) -> str:
        """Of a few; the first of equals."""
        density = self._density(models, now)
        return models[density.index(min(density))]

    def _density(self, models: Sequence[str], now: float) -> list[float]:
        resident = self._resident
        reload_s = [resident[model][1] for model in models]
        return [*self.policy.density(models, now, reload_s)]

    def _scan(self, now: float) -> str:
        """Rank everyone; keep the lowest for later and give the very lowest."""
        models = list(self._resident)
        density = self._density(models, now)
        self._used.clear()
        self._came.clear()
        serves = len(models) // EXACT_BELOW
        if serves < 2:
            return models[density.index(min(density))]
        ranks = sorted(range(len(models)), key=density.__getitem__)[:serves]
        self._queue = [models[i] for i in reversed(ranks)]
        return self._queue[-1]
