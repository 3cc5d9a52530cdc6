"""What a policy learnt survives a restart; a broken journal does not stop one."""

import json
import random

import pytest
from structlog.testing import capture_logs

from eviction.costs import PRIORS, Cost, Costs
from eviction.history import REQUESTS, Remembering
from eviction.policies import POLICIES
from runtime.journal import read, write
from tests import tiny_models
from tests.test_prewarm import ask, engine_over


def lived(policy: str) -> Remembering:
    """An hour of traffic: the hot are asked ten times as often as the cold."""
    chance, one = random.Random(0), Remembering(POLICIES[policy]())
    for second in range(3000):
        hot = chance.random() < 0.9
        model = f"hot{chance.randrange(10)}" if hot else f"cold{chance.randrange(40)}"
        one.on_request(model, float(second), False)
        one.on_load(model, 1000, 0.5, float(second))
        one.on_evict(model, float(second))
    return one


@pytest.mark.parametrize("policy", sorted(POLICIES.keys() - {"lru", "gds"}))
def test_a_new_process_ranks_as_the_old_one_did(policy, tmp_path):
    old = lived(policy)
    write(tmp_path / "j", old.story(3000.0), Costs().believed())
    new = Remembering(POLICIES[policy]())
    new.relive(read(tmp_path / "j").story, capacity=12_000, now=7.0)
    models = ["cold1", "hot1", "cold2", "hot2", "cold3", "hot3"]
    for model in models:
        new.on_load(model, 1000, 0.5, 8.0)
    density = dict(zip(models, new.density(models, 9.0, [0.5] * 6), strict=True))
    ranked = sorted(models, key=density.__getitem__)
    assert {name[:3] for name in ranked[:2]} == {"col"}
    assert {name[:3] for name in ranked[-2:]} == {"hot"}
    fresh = POLICIES[policy]()
    for model in models:
        fresh.on_load(model, 1000, 0.5, 8.0)
    assert len(set(fresh.density(models, 9.0, [0.5] * 6))) == 1, "it knew already"


def test_it_is_bounded_and_plain_data(tmp_path):
    one = Remembering(POLICIES["lru"]())
    for index in range(5 * REQUESTS):
        one.on_request(f"m{index}", float(index), False)
        one.on_load(f"m{index}", 10, 0.1, float(index))
        one.on_evict(f"m{index}", float(index))
    assert len(one._facts) <= 2 * REQUESTS
    story = one.story(1e6)
    assert len(story.requests) == len(story.facts) == REQUESTS
    write(tmp_path / "j", story, {})
    assert read(tmp_path / "j").story == story
    assert [p.name for p in tmp_path.iterdir()] == ["j"]


GOOD = {
    "format": 1,
    "costs": {},
    "story": {
        "facts": [{"model": "m", "nbytes": 1, "load_s": 0.5}],
        "requests": [[2.0, 0]],
    },
}


def changed(**story) -> bytes:
    return json.dumps({**GOOD, "story": {**GOOD["story"], **story}}).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        json.dumps({**GOOD, "format": 2}).encode(),
        changed(requests=[[2.0, 1]]),
        changed(requests=[[2.0, -1]]),
        changed(requests=[[1.0, 0], [2.0, 0]]),
        changed(requests=[[-1.0, 0]]),
        changed(requests=[[2.0, 0]] * (REQUESTS + 1)),
        changed(facts=[{"model": "m", "nbytes": -1, "load_s": 0.5}]),
        changed()[:-10],
    ],
)
def test_a_journal_that_is_none_is_left_aside_with_a_line(data, tmp_path):
    (tmp_path / "j").write_bytes(changed())
    assert read(tmp_path / "j") is not None
    (tmp_path / "j").write_bytes(data)
    with capture_logs() as logs:
        assert read(tmp_path / "j") is None
    assert [line["event"] for line in logs] == ["history ignored"]


def test_costs_are_believed_again_as_far_as_they_can_be():
    costs = Costs()
    costs.believe({"store": Cost(1.0, 2.0), "tape": Cost(1, 1), "disk": Cost(-1, 0.0)})
    assert costs.believed() == {**PRIORS, "store": Cost(1.0, 2.0)}


async def test_a_server_writes_it_when_it_drains_and_reads_it_when_it_starts(tmp_path):
    for index in range(1, 4):
        tiny_models.linear(tmp_path / "store", f"m{index}", index)
    journal = tmp_path / "history.json"
    async with engine_over(tmp_path / "store", history=str(journal)) as engine:
        for model in ("m1", "m2", "m1"):
            await ask(engine, model)
    names = [fact.model.partition(":")[0] for fact in read(journal).story.facts]
    assert sorted(names) == ["m1", "m2"]
    async with engine_over(tmp_path / "store", history=str(journal)) as engine:
        await ask(engine, "m3")
    assert len(read(journal).story.requests) == 4
    journal.write_bytes(b"not a journal")
    async with engine_over(tmp_path / "store", history=str(journal)) as engine:
        await ask(engine, "m3")
    assert len(read(journal).story.requests) == 1
