"""Several models of one graph in one call: the same answers, of leased weights."""

import asyncio
import random
import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import runtime.cross
from loader.across import across, run_around, stacked, stride_of
from loader.load import Model
from loader.pack import export, write
from runtime.batch import Batcher
from runtime.compose import composed
from runtime.conformance import Form
from runtime.contents import tensor_of
from runtime.counts import Counts
from runtime.cross import LEAST, Cross, Disagrees, Verdict, key, trial
from runtime.engine import Request
from runtime.lanes import Lanes
from runtime.pace import SEEN
from runtime.sources import load
from runtime.ways import Ways
from tests.brought import NETS, brought, rows

__all__ = ["brought"]

CPU = torch.device("cpu")


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("apart", [False, True])
async def test_each_model_gives_what_it_gives_alone(brought, net, apart) -> None:
    """In place, where they lie at a constant stride; copied, where one is missing."""
    models = await brought.bring(net, 5)
    assert stride_of(models) == models[0].nbytes
    if apart:
        del models[2]
        assert stride_of(models) is None
    x = torch.stack([rows(net, 3) * (1 + index) for index in range(len(models))])
    with torch.inference_mode():
        weights = stacked(models)
        forward = across(models[0].graph, [x.dim() - 1])
        shared = forward(*weights, x)
        for index, model in enumerate(models):
            alone = model.forward((x[index],))
            for wanted, got in zip(alone, shared, strict=True):
                torch.testing.assert_close(got[index], wanted)
    home = models[0].weights[0].untyped_storage().data_ptr()
    inside = {weight.untyped_storage().data_ptr() == home for weight in weights}
    assert inside == {not apart}


async def test_the_longest_run_around_a_model(brought) -> None:
    """Who lies alone among gaps has none; and a call takes so many at most."""
    models = await brought.bring("chain", 12)
    del models[9], models[3]  # 0 1 2 | 4 5 6 7 8 | 10 11
    found = [run_around(models, at, 16) for at in range(10)]
    runs = [slice(0, 3)] * 3 + [slice(3, 8)] * 5 + [slice(7, 9), slice(8, 10)]
    assert found == runs
    for at in range(10):
        run = run_around(models, at, 4)
        assert run.start <= at < run.stop
        assert run.stop - run.start == min(4, runs[at].stop - runs[at].start)
        assert stride_of(models[run]) is not None
    del models[6], models[4]  # 0 1 2 | 4 | 6 | 8 | 10 11
    assert run_around(models, 4, 16) == slice(2, 7), (
        "2, 4, 6, 8 and 10 are a stride apart too"
    )
    assert run_around(models[3:4], 0, 16) == slice(0, 1)


async def test_models_beyond_a_gap_are_calls_of_their_own(brought, bench) -> None:
    models = await brought.bring("chain", 2 * LEAST + 1)
    del models[LEAST]
    x = rows("chain", 1)
    pays(bench.cross, models[0], x)
    (what,) = bench.cross._verdicts
    verdict = bench.cross._verdicts[what]
    bench.cross._verdicts[what] = replace(verdict, copied=0.0)
    calls = []
    start = bench.lanes.start
    bench.lanes.start = lambda work: calls.append(work) or start(work)
    answers = await asyncio.gather(*[bench.batcher.run(m, asked(m, x)) for m in models])
    assert len(calls) == 2
    for model, parts in zip(models, answers, strict=True):
        with torch.inference_mode():
            alone = model.forward((x,))[0]
        torch.testing.assert_close(torch.from_numpy(parts[0].array.copy()), alone)


async def test_a_chain_is_one_call_a_layer(brought) -> None:
    """And what is no chain is not taken for one."""
    models = await brought.bring("chain", 2)
    names = across(models[0].graph, [2]).__code__.co_names
    assert "baddbmm" in names
    assert "vmap" not in names
    whole = across(models[0].graph, [3])  # rows of rows: linear layers do more there
    assert not hasattr(whole, "__self__") or "baddbmm" not in whole.__code__.co_names


def batcher(lanes: Lanes, cross: Cross, told: list) -> Batcher:
    made = Batcher(
        lanes, lambda *ended: told.append(ended), 1000, ways=Ways(lanes, cross)
    )
    made._company.expected = True
    return made


def asked(model: Model, x: torch.Tensor):
    return Form(model.spec).fit(Request(model.spec.name, {"x": x}))


def pays(cross: Cross, model: Model, x: torch.Tensor) -> None:
    """As if a trial had shown it."""
    what = key(model, asked(model, x), len(x))
    forward = across(model.graph, [x.dim()])
    cross._verdicts[what] = Verdict(model.graph.forward, forward, 9.0, 9.0)


@pytest.fixture
async def bench():
    lanes, cross, told = Lanes(CPU, 1), Cross(), []
    yield SimpleNamespace(
        lanes=lanes, cross=cross, told=told, batcher=batcher(lanes, cross, told)
    )
    lanes.close()
    cross.close()


@pytest.mark.parametrize("net", NETS)
async def test_a_turn_of_several_models_is_one_call(brought, bench, net) -> None:
    models = await brought.bring(net, 6)
    x = [rows(net, 2) + index for index in range(6)]
    pays(bench.cross, models[0], x[0])
    calls = []
    start = bench.lanes.start
    bench.lanes.start = lambda work: calls.append(work) or start(work)
    answers = await asyncio.gather(
        *[bench.batcher.run(m, asked(m, v)) for m, v in zip(models, x, strict=True)]
    )
    assert len(calls) == 1
    assert [ended[0] for ended in bench.told] == models
    assert {ended[2] for ended in bench.told} == {2}, "each model's own rows"
    for model, value, parts in zip(models, x, answers, strict=True):
        with torch.inference_mode():
            alone = model.forward((value,))
        for wanted, part in zip(alone, parts, strict=True):
            torch.testing.assert_close(torch.from_numpy(part.array.copy()), wanted)
            home = model.weights[0].untyped_storage()
            at = part.array.__array_interface__["data"][0]
            assert not home.data_ptr() <= at < home.data_ptr() + home.nbytes()
    assert bench.batcher.queued == 0


async def test_other_rows_and_other_graphs_stay_apart(brought, bench) -> None:
    models = await brought.bring("chain", LEAST + 1)
    pays(bench.cross, models[0], rows("chain", 2))
    many = [asked(m, rows("chain", 2)) for m in models[:-1]]
    one = asked(models[-1], rows("chain", 1))
    await asyncio.gather(
        *[bench.batcher.run(m, a) for m, a in zip(models, [*many, one], strict=True)]
    )
    assert sorted(ended[2] for ended in bench.told) == [1, *[2] * LEAST]
    assert len({id(ended[3]) for ended in bench.told}) > 1


async def test_other_datatypes_of_one_graph_stay_apart(brought, bench) -> None:
    """A graph that casts first is one file for models that take bytes of two kinds."""
    models = await brought.bring("chain", 2 * LEAST)
    for model in models[::2]:
        (x,) = model.spec.inputs
        spec = replace(model.spec, inputs=(replace(x, datatype="FP64"),))
        model.spec = spec
    narrow, wide = rows("chain", 2), rows("chain", 2).double()
    given = [wide if n % 2 == 0 else narrow for n in range(len(models))]
    forward = across(models[0].graph, [2])
    told = []

    def shared(*tensors):
        told.append(tensors[-1].dtype)
        return forward(*tensors[:-1], tensors[-1].float())

    for model, x in zip(models[:2], given[:2], strict=True):
        verdict = Verdict(model.graph.forward, shared, 9.0, 9.0)
        bench.cross._verdicts[key(model, asked(model, x), 2)] = verdict
    fits = [asked(m, x) for m, x in zip(models, given, strict=True)]
    answers = await asyncio.gather(
        *[bench.batcher.run(m, fit) for m, fit in zip(models, fits, strict=True)]
    )
    assert set(told) == {torch.float32, torch.float64}
    for model, parts in zip(models, answers, strict=True):
        with torch.inference_mode():
            alone = model.forward((narrow,))[0]
        torch.testing.assert_close(torch.from_numpy(parts[0].array.copy()), alone)


async def test_a_trial_that_cannot_begin_costs_nobody_an_answer(
    brought, bench, monkeypatch
) -> None:
    """A full device, or a range that the datatype cannot hold."""
    models = await brought.bring("chain", LEAST)
    x = rows("chain", 1)

    def refused(*of):
        raise RuntimeError("cannot be made")

    monkeypatch.setattr(runtime.cross, "filled", refused)
    for _ in range(2):
        runs = [bench.batcher.run(m, asked(m, x)) for m in models]
        assert len(await asyncio.wait_for(asyncio.gather(*runs), 5)) == LEAST
    assert bench.batcher.queued == 0


async def test_a_shared_call_that_fails_is_made_one_by_one(brought, bench) -> None:
    models = await brought.bring("chain", LEAST)
    x = rows("chain", 1)
    pays(bench.cross, models[0], x)

    def broken(*tensors):
        raise RuntimeError("no rule for this op")

    (key,) = bench.cross._verdicts
    bench.cross._verdicts[key] = Verdict(models[0].graph.forward, broken, 9.0, 9.0)
    answers = await asyncio.gather(*[bench.batcher.run(m, asked(m, x)) for m in models])
    for model, parts in zip(models, answers, strict=True):
        torch.testing.assert_close(
            torch.from_numpy(parts[0].array), model.forward((x,))[0]
        )


async def test_who_is_cancelled_waits_until_the_shared_call_ends(
    brought, bench
) -> None:
    """Trap 4: its weights are read until then, and its lease must hold them."""
    models = await brought.bring("chain", LEAST)
    x = rows("chain", 1)
    pays(bench.cross, models[0], x)
    (key,) = bench.cross._verdicts
    entered, gate = threading.Event(), threading.Event()
    real = bench.cross._verdicts[key].forward

    def held(*tensors):
        entered.set()
        assert gate.wait(10)
        return real(*tensors)

    bench.cross._verdicts[key] = Verdict(models[0].graph.forward, held, 9.0, 9.0)
    tasks = [asyncio.create_task(bench.batcher.run(m, asked(m, x))) for m in models]
    await asyncio.to_thread(entered.wait, 10)
    tasks[1].cancel()
    for _ in range(10):
        await asyncio.sleep(0)
    assert not tasks[1].done()
    gate.set()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(outcomes[1], asyncio.CancelledError)
    assert sum(isinstance(outcome, list) for outcome in outcomes) == LEAST - 1


async def test_the_first_use_is_tried_behind_the_requests(brought, bench) -> None:
    models = await brought.bring("chain", LEAST)
    x = rows("chain", 1)
    await asyncio.gather(*[bench.batcher.run(m, asked(m, x)) for m in models])
    assert {ended[2] for ended in bench.told} == {1}, "one by one meanwhile"
    (key,) = bench.cross._verdicts
    # One thread: what is asked of it now comes after the trial.
    await asyncio.get_running_loop().run_in_executor(bench.cross._threads, int)
    await asyncio.sleep(0)
    verdict = bench.cross._verdicts[key]
    assert verdict.basis is models[0].graph.forward
    assert verdict.in_place > 0
    assert verdict.copied < verdict.in_place
    models[0].graph.forward = lambda *tensors: models[0].graph.eager(*tensors)
    assert bench.cross.forward(models, 0, asked(models[0], x), 1) is None, "tried anew"


async def test_answers_that_differ_keep_models_apart(brought) -> None:
    (model,) = await brought.bring("chain", 1)
    model.graph.forward = lambda *tensors: tuple(
        y + 1 for y in model.graph.eager(*tensors)
    )
    with pytest.raises(Disagrees):
        trial(model.graph, [rows("chain", 1)], CPU)


async def test_short_shared_calls_run_on_the_loop(brought, bench) -> None:
    models = await brought.bring("chain", LEAST)
    x = rows("chain", 1)
    pays(bench.cross, models[0], x)
    first = asked(models[0], x)
    for _ in range(SEEN):
        bench.batcher._ways._pace.told(
            f"{models[0].graph.digest} across", first.signature, LEAST, 1e-5
        )
    bench.lanes.start = None  # nobody may need it
    answers = await asyncio.gather(*[bench.batcher.run(m, asked(m, x)) for m in models])
    assert len(answers) == LEAST
    assert tensor_of(first.pieces[0]).shape == (1, 6)


@pytest.fixture(scope="module")
def twelve(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Models of one graph in a store, written once."""
    folder = tmp_path_factory.mktemp("twelve")
    make, shape = NETS["chain"]
    program = export(make(0), {"x": torch.randn(shape)})
    nets = [make(index) for index in range(12)]
    for index, net in enumerate(nets):
        write(program, folder / f"m{index}" / "1", weights=net.state_dict())
    return SimpleNamespace(folder=folder, nets=nets)


@pytest.mark.parametrize("seed", range(4))
async def test_answers_are_right_while_models_come_and_go(twelve, seed) -> None:
    """Twelve models, room for seven, bursts of requests of which some are cancelled:
    models leave and move in while others are run together."""
    chance, shared = random.Random(seed), []
    nets, budget = twelve.nets, str(7 * 512 + 1024)  # they are booked by file size
    given = {"store": str(twelve.folder), "device": "cpu", "budget": budget}
    async with composed(load(given, None, {}), Counts()) as engine:
        cross = engine._batcher._ways._cross
        engine._batcher._company.expected = True

        async def ask_one(index: int, x: torch.Tensor) -> None:
            answer = await engine.predict(Request(f"m{index}", {"x": x}))
            with torch.no_grad():
                torch.testing.assert_close(answer.outputs[0][1], nets[index](x)[0])

        await ask_one(0, rows("chain", 1))
        (life,) = engine._cache.residencies.values()
        pays(cross, life.model, rows("chain", 1))
        (key,) = cross._verdicts
        found = cross._verdicts[key].forward

        def counted(*tensors):
            shared.append(len(tensors[0]))
            return found(*tensors)

        graph = life.model.graph
        cross._verdicts[key] = Verdict(graph.forward, counted, 9.0, 9.0)
        for _ in range(40):
            strangers = chance.sample(range(6, 12), chance.choice([1, 2]))
            some = [*chance.sample(range(6), 5), *strangers]
            tasks = [asyncio.create_task(ask_one(i, torch.randn(1, 6))) for i in some]
            for _ in range(chance.randrange(4)):
                await asyncio.sleep(0)
            if chance.random() < 0.5:
                chance.choice(tasks).cancel()
            for outcome in await asyncio.gather(*tasks, return_exceptions=True):
                assert outcome is None or isinstance(outcome, asyncio.CancelledError)
        assert engine._cache.departures.evictions > 10
    assert shared
    assert min(shared) >= LEAST
