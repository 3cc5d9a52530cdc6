"""What must be true of a cache at every moment, re-derived from scratch."""

from runtime.cache import ModelCache
from runtime.residency import Stage


def check(cache: ModelCache) -> None:
    """AssertionError if an invariant does not hold."""
    ledger = cache.ledger
    booked = {key: ledger.size(key) for key in cache.residencies if key in ledger}
    assert ledger.held == sum(booked.values()), f"bytes held for nobody: {cache!r}"
    leaving = 0
    for key, life in cache.residencies.items():
        assert life.spec.key == key
        assert life.stage in (Stage.LOADING, Stage.READY, Stage.LEAVING), life
        assert life.leases >= 0
        if life.stage is Stage.READY:
            assert life.model is not None
            assert booked[key] == life.model.nbytes, life
            assert not getattr(life.model, "closed", False), f"in use, closed: {life}"
        if life.stage is Stage.LEAVING:
            leaving += booked.get(key, 0)
    assert cache.room.leaving <= leaving
    assert 0 <= cache.door.loads <= cache.bounds.concurrent_loads
    assert cache.waiting >= 0
    line = list(cache.door._line)
    # A load that has just ended or been called off is heard of in the next turns.
    landing = any(want.admitted.done() for want in line) or any(
        life.task is not None and (life.task.done() or life.stage is Stage.LEAVING)
        for life in cache.residencies.values()
    )
    assert 0 <= cache.door.behind <= 1
    line = [w for w in line if w.urgent and not cache.room.barred(w)]
    if line and not landing and cache.door.loads < cache.bounds.concurrent_loads:
        assert line[0].need > ledger.free, f"room, and nobody let in: {cache!r}"
    for life in cache.failures.lives():
        assert life.arrival.done(), f"nobody was told: {life}"


def check_empty(cache: ModelCache) -> None:
    """After `aclose`: nothing is held, nothing waits, nothing runs."""
    check(cache)
    assert not cache.residencies
    assert cache.ledger.held == 0
    assert len(cache.door) == 0
    assert cache.door.loads == cache.door.behind == 0
    assert repr(cache.arrivals.turns) == "<Turns: 0 urgent, 0 put off>"
    assert cache.waiting == 0
    assert cache.room.leaving == 0
    assert not cache.departures
