"""Calls that are played from a recording: right answers, of the model that was asked.

The deck is a fake that does its work again over the same memory (tests/fake_deck.py);
tests/gpu has the same on a device.
"""

import asyncio
import gc
import random
import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import runtime.recordings
from loader.errors import DeviceLost
from loader.load import Model
from runtime.batch import Batcher
from runtime.conformance import Fitted, Form
from runtime.contents import Piece
from runtime.engine import Request
from runtime.lanes import Lanes
from runtime.recordings import AFTER, Recordings, bucket
from runtime.ways import Ways
from tests import brought as nets
from tests.brought import CPU, brought, rows
from tests.fake_deck import FakeDeck

__all__ = ["brought"]

ROOM = 1 << 20


@pytest.fixture
async def bench(brought, monkeypatch):
    """A batcher as on a GPU: lanes, and recordings that always pay."""
    monkeypatch.setattr(runtime.recordings, "GAIN", 0.0)
    lanes = Lanes(CPU, 2)
    lanes.inline = False
    deck = FakeDeck()
    recordings = Recordings(deck, ROOM)
    ways = Ways(lanes, recordings=recordings)
    batcher = Batcher(lanes, lambda *ended: None, 1000, ways=ways)
    yield SimpleNamespace(
        bring=brought.bring, loader=brought.loader, lanes=lanes, deck=deck,
        recordings=recordings, batcher=batcher,
    )  # fmt: skip
    recordings.close()
    lanes.close()


def asked(model: Model, x: torch.Tensor) -> Fitted:
    return Form(model.spec).fit(Request(model.spec.name, {"x": x}))


async def ask(bench, model: Model, x: torch.Tensor) -> None:
    """And compare."""
    with torch.inference_mode():
        wanted = model.forward((x,))
    got = await bench.batcher.run(model, asked(model, x))
    for part, right in zip(got, wanted, strict=True):
        torch.testing.assert_close(torch.from_numpy(part.array), right)


async def recorded(bench, model: Model, x: torch.Tensor) -> None:
    """Ask until the call is on the shelf."""
    for _ in range(AFTER):
        await ask(bench, model, x)
    while bench.recordings._trying is not None:
        await asyncio.wait([bench.recordings._trying])
        await asyncio.sleep(0)
    assert bench.recordings.find(model, asked(model, x), x.shape[0])


@pytest.mark.parametrize("net", ["chain", "vmap"])
async def test_every_model_of_the_graph_gives_its_own_answers(bench, net) -> None:
    models = await bench.bring(net, 4)
    await recorded(bench, models[0], rows(net, 4))
    (told,) = bench.recordings.status()
    assert (told.state, told.calls) == ("recorded", 0)
    assert bench.recordings.note(models[3].spec).startswith("recorded, ")
    played, lent = bench.deck.played, bench.deck.lent
    for turn in range(12):
        for count in (3, 4):  # one recording: a power of two
            await ask(bench, models[turn % 4], rows(net, count) * (turn + 1))
    assert bench.deck.played == played + 24
    assert bench.recordings.status()[0].calls == 24
    assert bench.deck.lent == lent == 1


async def test_weights_are_copied_only_for_another_model(bench) -> None:
    first, second = await bench.bring("chain", 2)
    await recorded(bench, first, rows("chain", 2))
    await ask(bench, first, rows("chain", 2))
    copies = bench.deck.copies
    for model, more in ((first, 0), (first, 0), (second, 1), (second, 1), (first, 2)):
        await ask(bench, model, rows("chain", 2))
        assert bench.deck.copies == copies + more


async def test_a_model_that_comes_back_is_another(bench) -> None:
    """It may lie where its predecessor lay, with other weights."""
    first, second = await bench.bring("chain", 2)
    await recorded(bench, first, rows("chain", 1))
    await ask(bench, first, rows("chain", 1))
    place = first.place
    spec = second.spec
    await bench.loader.unload(first)
    await bench.loader.unload(second)
    again = await bench.loader.load(spec)
    assert again.place == place
    await ask(bench, again, rows("chain", 1))


async def test_requests_that_share_a_call_get_their_own_rows(bench) -> None:
    (model,) = await bench.bring("chain", 1)
    await recorded(bench, model, rows("chain", 8))
    bench.batcher._company.expected = True
    played = bench.deck.played
    xs = [rows("chain", count) * (count + 1) for count in (1, 2, 3, 2)]
    await asyncio.gather(*(ask(bench, model, x) for x in xs))
    assert bench.deck.played == played + 1


async def test_busy_lanes_keep_a_recording_off_the_loop(bench) -> None:
    """There it would wait for what they wait for."""
    (model,) = await bench.bring("chain", 1)
    await recorded(bench, model, rows("chain", 1))
    where = []
    bench.deck.waiting = lambda: where.append(threading.get_ident())
    await ask(bench, model, rows("chain", 1))
    gate = threading.Event()
    held = bench.lanes.start(gate.wait)
    await ask(bench, model, rows("chain", 1))
    gate.set()
    await held
    loop = threading.get_ident()
    assert [ident == loop for ident in where] == [True, False]


async def test_who_finds_it_busy_runs_without_it(bench) -> None:
    (model,) = await bench.bring("chain", 1)
    await recorded(bench, model, rows("chain", 1))
    entered, gate = threading.Event(), threading.Event()

    def wait() -> None:
        entered.set()
        assert gate.wait(10)

    bench.deck.waiting = wait
    recording = bench.recordings.find(model, asked(model, rows("chain", 1)), 1)
    batch = [asked(model, rows("chain", 1))]
    held = asyncio.create_task(asyncio.to_thread(recording.play, model, batch))
    await asyncio.to_thread(entered.wait, 10)
    played = bench.deck.played
    await ask(bench, model, rows("chain", 1))
    assert bench.deck.played == played
    gate.set()
    assert await held


async def test_a_recording_that_fails_is_no_request_s_fault(bench) -> None:
    (model,) = await bench.bring("chain", 1)
    await recorded(bench, model, rows("chain", 1))
    bench.deck.trouble = [RuntimeError("planted")]
    await ask(bench, model, rows("chain", 1))
    assert not bench.deck.trouble
    played = bench.deck.played
    await ask(bench, model, rows("chain", 1) * 2)
    assert bench.deck.played == played, "once is enough"


async def test_a_lost_device_is_told(bench) -> None:
    (model,) = await bench.bring("chain", 1)
    await recorded(bench, model, rows("chain", 1))
    lost = []
    bench.lanes._on_lost = lambda: lost.append(True)
    bench.deck.trouble = [torch.AcceleratorError("planted")]
    with pytest.raises(DeviceLost):
        await bench.batcher.run(model, asked(model, rows("chain", 1)))
    assert lost == [True]


async def test_what_looks_at_its_own_numbers_stays_as_it_is(bench, monkeypatch) -> None:
    (model,) = await bench.bring("chain", 1)

    def refuses(work) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    tries = []
    monkeypatch.setattr(
        bench.deck, "record", lambda work: tries.append(1) or refuses(work)
    )
    for _ in range(4 * AFTER):
        await ask(bench, model, rows("chain", 1))
        while bench.recordings._trying is not None:
            await asyncio.wait([bench.recordings._trying])
            await asyncio.sleep(0)
    assert tries == [1]
    (told,) = bench.recordings.status()
    assert (told.state, told.reason) == ("refused", "cannot be")
    gc.collect()
    assert bench.deck.lent == 0


async def test_answers_that_differ_are_never_served(bench, monkeypatch) -> None:
    (model,) = await bench.bring("chain", 1)
    x = rows("chain", 1)
    record = bench.deck.record

    def wrongly(work):
        tape = record(work)
        play = tape.play

        def off() -> None:
            play()
            recording = work.__self__
            recording._outs[0].add_(1)

        tape.play = off
        return tape

    monkeypatch.setattr(bench.deck, "record", wrongly)
    for _ in range(AFTER):
        await ask(bench, model, x)
    await asyncio.wait([bench.recordings._trying])
    for _ in range(AFTER):
        await ask(bench, model, x)
    assert bench.recordings.find(model, asked(model, x), 1) is None


async def test_a_trial_asks_nothing_that_nobody_asked(bench, monkeypatch) -> None:
    """On a GPU an index beyond its table ends the process: numbers of our own making
    must not be one."""
    monkeypatch.setitem(nets.NETS, "from one", nets.FROM_ONE)
    (model,) = await bench.bring("from one", 1)
    x = torch.tensor([[5, 1, 2, 3], [2, 4, 1, 5], [1, 1, 1, 1]])
    await recorded(bench, model, x)
    await ask(bench, model, x)  # the fourth row is one that was asked, too
    assert bench.deck.played


async def test_calls_that_fail_are_no_reason_to_record(bench) -> None:
    """A trial of such a call would fail too, and its graph be given up for all."""
    (model,) = await bench.bring("chain", 1)

    def refuses(*tensors) -> None:
        raise RuntimeError("planted")

    model.graph.forward = refuses
    for _ in range(2 * AFTER):
        with pytest.raises(RuntimeError, match="planted"):
            await bench.batcher.run(model, asked(model, rows("chain", 1)))
    assert not bench.recordings._shelves
    model.graph.forward = model.graph.eager
    await recorded(bench, model, rows("chain", 1))


async def test_a_trial_holds_up_nobody_s_event_loop(bench, monkeypatch) -> None:
    """It has the deck's turn for as long as a call of any length takes, in a thread
    that stands back: whoever wants to play waits for it in a lane."""
    (model,) = await bench.bring("chain", 1)
    await recorded(bench, model, rows("chain", 1))
    tried, gate, opened = threading.Event(), threading.Event(), []

    def wait() -> None:
        if threading.current_thread().name.startswith("recorder"):
            tried.set()
            opened.append(gate.wait(3))

    bench.deck.waiting = wait
    for _ in range(AFTER):
        await ask(bench, model, rows("chain", 2))
    assert await asyncio.to_thread(tried.wait, 10)
    asking = asyncio.create_task(ask(bench, model, rows("chain", 1)))
    await asyncio.sleep(0)
    gate.set()  # too late, were the loop the one that waits
    await asking
    assert opened[0]


async def test_inputs_and_outputs_have_their_share_of_the_room(bench) -> None:
    (model,) = await bench.bring("chain", 1)
    slot = model.placed.placing.nbytes
    bench.recordings._room = slot + 3 * 256
    await recorded(bench, model, rows("chain", 1))
    x = rows("chain", 64)  # its rows are more than 256 bytes
    for _ in range(2 * AFTER):
        await ask(bench, model, x)
        if bench.recordings.trying:
            await asyncio.wait([bench.recordings._trying])
            await asyncio.sleep(0)
    assert bench.recordings.find(model, asked(model, x), 64) is None
    assert bench.recordings._shelves[model.graph.digest].reason == "too large"
    while bench.deck.lent != 1:
        gc.collect()
        await asyncio.sleep(0.01)


async def test_who_cannot_be_recorded_takes_no_room(bench, monkeypatch) -> None:
    (model,) = await bench.bring("chain", 1)
    monkeypatch.setattr(runtime.recordings, "GAIN", 1e9)
    for _ in range(AFTER):
        await ask(bench, model, rows("chain", 1))
    await asyncio.wait([bench.recordings._trying])
    await asyncio.sleep(0)
    (shelf,) = bench.recordings._shelves.values()
    assert (shelf.slot, shelf.reason) == (None, "no sooner")


async def test_a_header_read_anew_is_the_same(bench) -> None:
    """It is another object, once as many others were read."""
    first, second = await bench.bring("chain", 2)
    await recorded(bench, first, rows("chain", 1))
    second.placed = replace(second.placed)
    assert second.placed is not first.placed
    assert bench.recordings.find(second, asked(second, rows("chain", 1)), 1)
    await ask(bench, second, rows("chain", 1))
    second.placed = replace(second.placed, header=b"of another order")
    assert not bench.recordings.find(second, asked(second, rows("chain", 1)), 1)


async def test_slots_keep_to_their_room(bench) -> None:
    """The least recently used leaves; its host memory goes with it."""
    (chain,) = await bench.bring("chain", 1)
    (vmap,) = await bench.bring("vmap", 1)
    one = max(m.placed.placing.nbytes for m in (chain, vmap)) + 1024  # and its rows
    bench.recordings._room = one
    await recorded(bench, chain, rows("chain", 1))
    assert bench.deck.lent == 1
    await recorded(bench, vmap, rows("vmap", 1))
    gc.collect()
    assert bench.deck.lent == 1
    assert bench.recordings.find(chain, asked(chain, rows("chain", 1)), 1) is None
    await recorded(bench, chain, rows("chain", 1))


async def test_what_is_too_large_for_any_slot_is_not_recorded(bench) -> None:
    (model,) = await bench.bring("chain", 1)
    bench.recordings._room = model.placed.placing.nbytes - 1
    for _ in range(2 * AFTER):
        await ask(bench, model, rows("chain", 1))
    assert bench.recordings._trying is None
    assert bench.deck.lent == 0


def test_rows_go_by_powers_of_two_up_to_the_most() -> None:
    model = SimpleNamespace(spec=SimpleNamespace(max_batch_size=24))
    assert [bucket(model, n) for n in (1, 2, 3, 9, 17, 24)] == [1, 2, 4, 16, 24, 24]
    without = SimpleNamespace(spec=SimpleNamespace(max_batch_size=0))
    assert bucket(without, 1) == 0


def test_a_byte_of_a_bool_is_0_or_1() -> None:
    from runtime.contents import array_of
    from runtime.recorded import _put

    place = torch.zeros(3, dtype=torch.bool).numpy()
    piece = Piece("BOOL", (3,), b"\x00\x02\xff")
    _put(place, array_of(piece), "BOOL")
    assert place.tobytes() == b"\x00\x01\x01"


@pytest.mark.parametrize("seed", range(4))
async def test_under_stress_every_answer_is_the_asked_model_s(bench, seed) -> None:
    """Six models of two graphs, calls alone and together, on the loop and in lanes,
    while recordings are made, slots change hands and models leave and come back."""
    chance = random.Random(seed)
    models = [("chain", m) for m in await bench.bring("chain", 3)]
    models += [("vmap", m) for m in await bench.bring("vmap", 3)]
    sizes = [m.placed.placing.nbytes for _, m in models]
    bench.recordings._room = chance.choice([ROOM, max(sizes) + 2048])
    for turn in range(120):
        bench.batcher._company.expected = chance.random() < 0.5
        some = chance.sample(models, chance.randint(1, 6))
        await asyncio.gather(
            *(
                ask(bench, model, rows(net, chance.randint(1, 4)) * (turn % 7 + 1))
                for net, model in some
            )
        )
        if chance.random() < 0.1:
            index = chance.randrange(len(models))
            net, model = models[index]
            spec = model.spec
            await bench.loader.unload(model)
            models[index] = net, await bench.loader.load(spec)
    assert bench.deck.played > 50
    bench.recordings.close()
    if bench.recordings._trying is not None:
        await asyncio.wait([bench.recordings._trying])
        await asyncio.sleep(0)
    gc.collect()
    assert bench.deck.lent == 0
