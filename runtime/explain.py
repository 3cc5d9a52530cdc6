"""Finding out why a model is here, or is not: a dry run and a look into the past.

Owns: the sentence and the numbers of an `Explanation`. Must not: change anything:
asking a policy or a plan is not doing.
"""

from collections.abc import Sequence

from eviction.candidates import Candidate
from loader.manifest import ModelSpec
from runtime.cache import ModelCache
from runtime.decisions import Decision
from runtime.engine import State
from runtime.explanation import Event, Explanation, Ranked
from runtime.residency import M, Residency, Stage

MOST_RANKED = 100
MOST_EVENTS = 50

STATES: dict[Stage, State] = {
    Stage.LOADING: "LOADING",
    Stage.READY: "READY",
    Stage.LEAVING: "UNLOADING",
}


def explain(cache: ModelCache[M], spec: ModelSpec, policy: str) -> Explanation:
    """As things stand."""
    now, room = cache.clock(), cache.room
    life = cache.residencies.get(spec.key)
    ranking = ranked(cache, now)
    rank = next((n for n, one in enumerate(ranking) if one[0] == spec.key), None)
    past = cache.chronicle.decisions.about(spec.name, spec.version, MOST_EVENTS)
    pushed, short, itself = _dry_run(cache, spec, now)
    if life is not None:
        itself = room.candidate(life)
    by_key = dict(ranking)
    return Explanation(
        model=spec.name,
        version=spec.version,
        state=STATES[life.stage] if life is not None else "UNAVAILABLE",
        because=_because(life, spec, rank, len(ranking), past, now),
        policy=policy,
        nbytes=itself.nbytes,
        pinned=spec.pin,
        priority=spec.priority,
        tenant=spec.tenant,
        leases=life.leases if life is not None else 0,
        uses=life.uses if life is not None else 0,
        reload_s=itself.reload_s,
        density=None if rank is None else ranking[rank][1].density,
        rank=rank,
        price=room.price,
        spiral=cache.spiral.turning,
        would_push_out=[by_key[key] for key in pushed if key in by_key],
        short=short,
        ranking=[one for _, one in ranking[:MOST_RANKED]],
        history=[_event(one, now) for one in past],
    )


def ranked(cache: ModelCache[M], now: float) -> list[tuple[str, Ranked]]:
    """All that may leave, the lowest density first, by key."""
    lives = cache.room.may_leave()
    candidates = cache.room.candidates(lives)
    density = cache.room.density(candidates, now) if candidates else ()
    found = [
        (life.key, _ranked(life, nbytes, value, reload_s, now))
        for life, nbytes, value, reload_s in zip(
            lives, candidates.nbytes, density, candidates.reload_s, strict=True
        )
    ]
    return sorted(found, key=lambda pair: pair[1].density)


def _ranked(
    life: Residency[M], nbytes: int, density: float, reload_s: float, now: float
) -> Ranked:
    return Ranked(
        life.spec.name,
        life.spec.version,
        nbytes,
        density,
        reload_s,
        now - max(life.last_use, life.since),
        life.spec.priority,
        life.spec.tenant,
    )


def _dry_run(
    cache: ModelCache[M], spec: ModelSpec, now: float
) -> tuple[Sequence[str], int, Candidate]:
    """Who would leave for it, what would be missing still, and it as a candidate."""
    absent = cache.room.absent(spec, cache.size(spec))
    if spec.key in cache.residencies:
        return (), 0, absent
    leaves = cache.room.would_leave(spec, absent.nbytes, now)
    return leaves.victims, leaves.short, absent


def _because(
    life: Residency[M] | None,
    spec: ModelSpec,
    rank: int | None,
    ranked: int,
    past: Sequence[Decision],
    now: float,
) -> str:
    if life is None:
        return _absent_because(spec, past, now)
    if life.stage is Stage.LOADING:
        return f"it is loading, for {life.leases} waiting requests"
    if life.stage is Stage.LEAVING:
        return f"it is leaving; {_left(past, now)}"
    here = f"here for {now - life.since:.1f} s, used {life.uses} times"
    if life.leases:
        return f"{here}, and in use by {life.leases}: nothing in use leaves"
    if spec.pin:
        return f"{here}, and pinned: it never leaves for others"
    return f"{here}; {rank} of {ranked} that may leave would leave before it"


def _absent_because(spec: ModelSpec, past: Sequence[Decision], now: float) -> str:
    own = [one for one in past if one.model == spec.name and one.what != "loaded"]
    if not own:
        return "nobody has asked for it, as far back as is remembered"
    last = own[-1]
    if last.what == "refused":
        return f"refused {now - last.at:.1f} s ago: {last.reason}"
    return _left(own, now)


REASONS = {
    "room": "to make room",
    "ceiling": "to make room under its tenant's ceiling",
    "shrunk": "because the device had less memory for models",
    "idle": "for having been idle for too long",
    "unloaded": "because an operator unloaded it",
    "unwanted": "because nobody waited for it any more",
    "drained": "because the server is going away",
}


def _left(past: Sequence[Decision], now: float) -> str:
    left = next((one for one in reversed(past) if one.what == "left"), None)
    if left is None:
        return "longer ago than is remembered"
    text = f"it left {now - left.at:.1f} s ago {REASONS.get(left.reason, left.reason)}"
    if left.cause:
        text += f" for {left.cause}"
    if left.rank is not None:
        text += f": number {left.rank + 1} of {left.ranked} that could leave"
    return text


def _event(one: Decision, now: float) -> Event:
    return Event(
        now - one.at, one.what, one.model, one.version, one.reason, one.nbytes,
        one.cause, one.density, one.rank, one.ranked, one.load_s, one.reload_s,
    )  # fmt: skip
