"""Each policy against its definition, computed the slow way from the whole story."""

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eviction.blend import Blend
from eviction.candidates import Candidate, Candidates
from eviction.gds import Gds
from eviction.gdsf import Gdsf
from eviction.lhd import AGE_BIN, AGES, OLDEST, Lhd, hit_density
from eviction.lru import Lru
from eviction.plan import plan
from eviction.policies import DEFAULT, POLICIES
from eviction.policy import Policy
from eviction.rate import Rate
from eviction.shadow import Shadow
from eviction.tournament import Tournament

MODELS = "abcdef"
SIZE = {m: 100 * (1 + i) for i, m in enumerate(MODELS)}
COST = {m: 0.5 + (i * 7 % 4) for i, m in enumerate(MODELS)}
STORY = st.lists(st.sampled_from(MODELS), max_size=60)


def replayed(
    policy: Policy, story: Sequence[str], budget: int = 900
) -> list[tuple[str, ...]]:
    """What a real little cache evicts, event by event."""
    resident: dict[str, Candidate] = {}
    evicted = []
    for now, model in enumerate(story):
        policy.on_request(model, float(now), model in resident)
        if model in resident:
            evicted.append(())
            continue
        free = budget - sum(c.nbytes for c in resident.values())
        made = plan(
            policy, Candidates.of(resident.values()), SIZE[model] - free, float(now)
        )
        for victim in made.victims:
            del resident[victim]
            policy.on_evict(victim, float(now))
        evicted.append(made.victims)
        resident[model] = Candidate(model, SIZE[model], COST[model])
        policy.on_load(model, SIZE[model], COST[model], float(now))
    return evicted


def by_the_paper(
    story: Sequence[str], kind: str, budget: int = 900
) -> list[tuple[str, ...]]:
    """GreedyDual-Size(-Frequency) as printed: H in a dict, L the last victim's H."""
    # (LRU is the same with the number of the event for H.)
    height: dict[str, float] = {}
    count: dict[str, int] = {}
    level, evicted = 0.0, []
    for event, model in enumerate(story):
        gone: list[str] = []
        if model not in height:
            free = budget - sum(SIZE[m] for m in height)
            order = sorted(height, key=lambda m: height[m])
            if SIZE[model] > free and any(
                abs(height[m] - height[n]) < 1e-9 for m, n in pairwise(order)
            ):
                return evicted
            while SIZE[model] > free:
                gone.append(order.pop(0))
                free += SIZE[gone[-1]]
            for m in reversed(gone.copy()):
                if free - SIZE[m] >= SIZE[model]:
                    free -= SIZE[m]
                    gone.remove(m)
            level = max([level] + [height.pop(m) for m in gone])
            count[model] = 0
        count[model] += 1
        uses = count[model] if kind == "frequency" else 1
        height[model] = level + uses * COST[model] / SIZE[model]
        if kind == "recency":
            height[model] = float(event)
        evicted.append(tuple(gone))
    return evicted


@given(STORY)
def test_lru_evicts_the_oldest_use(story: list[str]) -> None:
    assert replayed(Lru(), story) == by_the_paper(story, "recency")


@given(STORY)
def test_gds_is_the_papers(story: list[str]) -> None:
    assert same(replayed(Gds(), story), by_the_paper(story, "size"))


@given(STORY)
def test_gdsf_without_ghosts_or_ageing_is_the_papers(story: list[str]) -> None:
    policy = Gdsf(half_life=1e12, ghosts=False)
    assert same(replayed(policy, story), by_the_paper(story, "frequency"))


def same(ours: list[tuple[str, ...]], theirs: list[tuple[str, ...]]) -> bool:
    """Equal as far as the paper says: `theirs` ends where two heights tie but for the
    last bits of a float, and either may go."""
    return ours[: len(theirs)] == theirs


@given(STORY)
def test_rate_is_the_sum_of_all_uses_each_faded(story: list[str]) -> None:
    half_lives = (1.0, 4.0, 16.0)
    policy = Rate(half_lives)
    seen: dict[str, list[int]] = {}
    known = []
    for i, model in enumerate(story):
        policy.on_request(model, float(i), False)
        policy.on_load(model, SIZE[model], COST[model], float(i))
        seen.setdefault(model, []).append(i)
        known.append(len(seen))
    expected = []
    for model in seen:
        total = 0.0
        for half_life in half_lives:
            for use in seen[model]:
                faded = 1.0
                for later in range(use + 1, len(story)):
                    faded /= 1.0 + 0.6931471805599453 / (half_life * known[later])
                total += 0.6931471805599453 / (half_life * len(seen)) * faded / 3.0
        expected.append(total * COST[model] / SIZE[model])
    models = list(seen)
    answer = policy.density(models, 0.0, [COST[m] for m in models])
    assert list(answer) == pytest.approx(expected)


@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 9)), max_size=12),
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 3)), max_size=5),
)
@settings(max_examples=60)
def test_hit_density_gives_up_at_the_best_of_all_times(
    returns: list[tuple[int, int]], open_ones: list[tuple[int, int]]
) -> None:
    events, away = [0.0] * AGES, [0.0] * AGES
    for b, n in returns:
        events[b] += n
    for b, n in open_ones:
        away[b] += n
    edge = [2.0 ** (b / 4) for b in range(AGES + 1)]
    still = [1.0]
    for b in range(AGES):
        risk = sum(events[b:]) + sum(away[b:])
        still.append(still[-1] * (1.0 - (events[b] / risk if risk else 0.0)))
    for b, density in enumerate(hit_density(events, away)):
        best, hits, spent = 0.0, 0.0, 0.0
        for j in range(b, AGES):
            hits += still[j] - still[j + 1]
            spent += 0.5 * (still[j] + still[j + 1]) * (edge[j + 1] - edge[j])
            best = max(best, hits / spent if spent > 0.0 else 0.0)
        assert density == pytest.approx(best, abs=1e-12)


def test_age_bins_grow_by_quarter_octaves() -> None:
    assert len(AGE_BIN) == 2 * OLDEST == 2 ** (AGES // 4)
    assert list(AGE_BIN[:5000]) == sorted(AGE_BIN[:5000])
    for age in (1, 2, 3, 4, 5, 6, 7, 8, 23, 24, 1000, 2 * OLDEST - 1):
        low, high = (2.0 ** (b / 4) for b in (AGE_BIN[age], AGE_BIN[age] + 1))
        assert 0.79 * low < age < 1.27 * high
    assert AGE_BIN[4] + 4 == AGE_BIN[8]
    assert AGE_BIN[-1] == AGES - 1


@pytest.mark.parametrize("make", [Lhd, Blend])
def test_an_age_is_never_beyond_the_table(make, monkeypatch) -> None:
    """With a table of 1,024 ages instead of four million."""
    monkeypatch.setattr("eviction.lhd.OLDEST", 512)
    for module in ("eviction.lhd", "eviction.blend"):
        monkeypatch.setattr(f"{module}.AGE_BIN", AGE_BIN[:1024])
    policy = make()
    policy.on_request("idle", 0.0, False)
    policy.on_load("idle", 1000, 1.0, 0.0)
    for i in range(5000):
        policy.on_request(f"m{i % 200}", float(i), False)
        assert len(policy.density(["idle", "never heard of"], 0.0, [1.0, 1.0])) == 2
    policy.on_request("idle", 0.0, True)


def test_lhd_learns_that_a_clockwork_model_comes_back_and_a_dead_one_does_not() -> None:
    policy = Lhd()
    for i in range(4000):
        model = "clock" if i % 8 == 0 else f"noise{i % 97}"
        policy.on_request(model, float(i), False)
        policy.on_load(model, 1000, 1.0, float(i))
    dead = "noise1"
    for i in range(4000, 6000):
        if (model := "clock" if i % 8 == 0 else f"noise{i % 97}") != dead:
            policy.on_request(model, float(i), True)
    clock, gone = policy.density(["clock", dead], 6000.0, [1.0, 1.0])
    assert clock > 5 * gone


@given(STORY)
def test_blend_is_the_geometric_mean_of_the_two(story: list[str]) -> None:
    blend, rate, lhd = Blend(), Rate(), Lhd()
    for policy in (blend, rate, lhd):
        replayed(policy, story)
    models = [*MODELS, "stranger"]
    costs = [1.0] * len(models)
    for both, a, b in zip(
        blend.density(models, 0.0, costs),
        rate.density(models, 0.0, costs),
        lhd.density(models, 0.0, costs),
        strict=True,
    ):
        assert both == pytest.approx((a * b) ** 0.5)


@given(STORY, st.integers(700, 2000))
def test_a_shadow_stays_in_its_budget_and_loads_whom_it_is_told(
    story: list[str], budget: int
) -> None:
    shadow = Shadow("gds", Gds())
    for i, model in enumerate(story):
        if not shadow.request(model, float(i)):
            shadow.load(model, SIZE[model], COST[model], float(i), budget)
        assert shadow.request(model, float(i))
        held = int(repr(shadow).split("hold ")[1].split()[0])
        assert held <= budget


def test_a_large_shadow_evicts_several_by_one_scan_and_none_used_since() -> None:
    shadow = Shadow("lru", Lru())
    for i in range(256):
        shadow.request(f"m{i}", 0.0)
        shadow.load(f"m{i}", 1, 1.0, 0.0, 256)
    shadow.request("new0", 0.0)
    shadow.load("new0", 1, 1.0, 0.0, 256)  # m0 leaves, m1.. are queued
    assert shadow.request("m1", 0.0)
    shadow.request("new1", 0.0)
    shadow.load("new1", 1, 1.0, 0.0, 256)
    assert shadow.request("m1", 0.0)
    assert not shadow.request("m2", 0.0)


class AsDearAsItsLoad(Lru):
    def density(
        self, models: Sequence[str], now: float, reload_s: Sequence[float]
    ) -> Sequence[float]:
        return reload_s


def test_a_newcomer_worth_less_than_the_queue_leaves_before_it() -> None:
    shadow = Shadow("cost", AsDearAsItsLoad())
    for i in range(256):
        shadow.load(f"m{i}", 1, 1.0, 0.0, 256)
    shadow.load("dear", 1, 9.0, 0.0, 256)  # m0 leaves, m1.. are queued
    for name in ("cheap", "cheaper", "even"):
        shadow.load(name, 1, {"cheap": 0.2, "cheaper": 0.1}.get(name, 1.0), 0.0, 256)
    # m1 for the cheap, the cheap for the cheaper, the cheaper for the one like all
    assert not any(shadow.request(name, 0.0) for name in ("m1", "cheap", "cheaper"))
    assert all(shadow.request(name, 0.0) for name in ("m2", "dear", "even"))
    shadow.load("free", 1, 0.0, 0.0, 256)
    shadow.forget("free")
    shadow.load("one", 1, 1.0, 0.0, 256)
    shadow.load("more", 1, 1.0, 0.0, 256)
    assert not shadow.request("free", 0.0)


def test_a_newcomer_that_comes_again_larger_makes_room_like_any_other() -> None:
    shadow = Shadow("cost", AsDearAsItsLoad())
    for i in range(256):
        shadow.load(f"m{i}", 1, 1.0, 0.0, 256)
    shadow.load("grows", 1, 0.5, 0.0, 256)  # m0 leaves, m1.. are queued
    shadow.load("grows", 4, 0.5, 0.0, 256)  # m1, m2 and m3 leave, not itself
    assert repr(shadow) == "<Shadow cost: 253 hold 256 bytes>"
    assert shadow.request("grows", 0.0)
    assert not shadow.request("m3", 0.0)


def test_the_tournament_follows_whoever_pays_least() -> None:
    """A loop one larger than the cache: recency always errs, frequency settles."""
    tournament = Tournament()
    story = [f"m{i % 12}" for i in range(12_000)]
    resident: dict[str, Candidate] = {}
    misses = 0
    for now, model in enumerate(story):
        tournament.on_request(model, float(now), model in resident)
        if model in resident:
            continue
        misses += now > 6000
        need = 100 - (1100 - 100 * len(resident))
        for victim in plan(
            tournament, Candidates.of(resident.values()), need, float(now)
        ).victims:
            del resident[victim]
            tournament.on_evict(victim, float(now))
        resident[model] = Candidate(model, 100, 1.0)
        tournament.on_load(model, 100, 1.0, float(now))
    bills = dict(
        part.rsplit(" ", 1)
        for part in repr(tournament).split(": ", 1)[1].rstrip(">").split(", ")
    )
    cheapest = min(map(float, bills.values()))
    assert float(bills[tournament.leader]) <= cheapest / 0.98 + 1e-9
    assert misses < 6000


@settings(max_examples=30)
@given(st.lists(st.sampled_from(MODELS), min_size=300, max_size=900))
def test_what_is_told_in_bundles_is_what_is_told_at_once(story) -> None:
    bundled, prompt = Tournament(), Tournament()
    on_request = prompt.on_request

    def at_once(model: str, now: float, resident: bool) -> None:
        on_request(model, now, resident)
        prompt._tell()

    prompt.on_request = at_once  # type: ignore[method-assign]
    assert replayed(bundled, story) == replayed(prompt, story)
    assert repr(bundled) == repr(prompt)


def test_the_default_is_among_the_named() -> None:
    assert DEFAULT in POLICIES
    assert set(POLICIES) >= {"lru", "gds", "gdsf", "rate", "lhd", "tournament"}


@pytest.mark.parametrize("make", [Rate, Lhd, Blend, Gdsf])
def test_who_is_gone_for_very_long_is_dropped_and_residents_never(make) -> None:
    policy = make()
    for model in ("resident", "gone"):
        policy.on_request(model, 0.0, False)
        policy.on_load(model, 1000, 1.0, 0.0)
    policy.on_evict("gone", 0.0)
    for i in range(12_000):
        policy.on_request(f"m{i % 3}", float(i), False)
    known = policy._known
    assert "resident" in known
    assert "gone" not in known
