"""The seam between two processes, both sides in this one: real sockets and memory."""

import asyncio
import contextlib
import random
import socket

import pytest
import torch

from loader.errors import ArtifactRefused, LoadFailed, ModelNotFound
from runtime.engine import Request
from runtime.errors import (
    BadRequest,
    DeadlinePassed,
    Draining,
    EngineLost,
    NoRoom,
    Poisonous,
    QueueFull,
    Refused,
)
from runtime.link import stream as stream_module
from runtime.link.failures import KINDS, failed, restored
from runtime.link.memory import ALIGNED, KEPT, Region, anonymous
from runtime.link.messages import Ask, Failed, Part, Ready, encoded, replies
from runtime.link.pending import Pending
from runtime.link.stream import Stream
from runtime.link.tensors import INLINE, packed, unpacked
from runtime.status import FailedElsewhere, answer_to, status_of
from tests.apart import Pair, apart, region
from tests.fake_engine import FakeEngine

X = torch.ones(1, 64)


def ask(remote, model="linear", x=X, **more):
    return asyncio.create_task(remote.predict(Request(model, {"x": x}, **more)))


# ---- errors -------------------------------------------------------------------------


ERRORS = sorted({*KINDS.values()} - {LoadFailed, Refused}, key=str)


@pytest.mark.parametrize("kind", ERRORS)
def test_an_error_comes_out_as_what_it_was(kind) -> None:
    error = kind.__new__(kind, "a sentence")
    error.__dict__["retry_after"] = 2.5
    there = restored(failed(1, error, "predict"))
    assert type(there) is kind
    assert vars(there) == vars(error)
    assert status_of(there) == status_of(error)


def test_errors_with_arguments_of_their_own() -> None:
    missing = restored(failed(1, ModelNotFound("m", "3"), "predict"))
    assert (missing.message, missing.model) == (ModelNotFound("m", "3").message, "m")
    refused = restored(failed(1, ArtifactRefused("graph.json", "is bad"), "predict"))
    assert (refused.place, refused.reason) == ("graph.json", "is bad")
    assert restored(failed(1, NoRoom("no", 4.0), "predict")).retry_after == 4.0


def test_of_a_bug_only_the_incident_crosses() -> None:
    message = failed(1, RuntimeError("canary s3://key:secret@host"), "predict")
    assert "canary" not in str(message)
    there = restored(message)
    assert isinstance(there, FailedElsewhere)
    status = answer_to(there, "ModelInfer")
    assert status.incident == message.text
    assert status.text == f"internal error, id {message.text}"


# ---- memory -------------------------------------------------------------------------


def test_stretches_never_overlap_and_all_come_back() -> None:
    memory, _ = region(1 << 20)
    order, taken = random.Random(3), {}
    for _ in range(3000):
        if taken and order.random() < 0.5:
            memory.free(taken.popitem()[0] if order.random() < 0.5 else _any(taken))
        size = order.choice((1, 64, 100, 5000, 70_000))
        start = memory.take(size)
        if start is not None:
            assert start % ALIGNED == 0
            assert all(start + size <= s or e <= start for s, e in taken.items())
            taken[start] = start + size
    for start in taken:
        memory.free(start)
    assert memory.held == 0
    assert memory.take((1 << 20) - ALIGNED) == ALIGNED, "in one piece again"


def _any(taken: dict) -> int:
    start = next(iter(taken))
    del taken[start]
    return start


def test_what_is_freed_twice_is_a_bug() -> None:
    memory, _ = region()
    start = memory.take(10)
    memory.free(start)
    with pytest.raises(KeyError):
        memory.free(start)


def test_an_empty_region_gives_its_pages_back_and_keeps_its_note() -> None:
    fd = anonymous("test", 64 << 20)
    memory = Region(fd)
    memory.note = 7
    start, _ = memory.put(b"x" * (2 * KEPT))
    memory.free(start)
    assert bytes(memory.bytes[2 * KEPT - 9 : 2 * KEPT]) == bytes(9)
    assert memory.note == 7


@pytest.mark.parametrize("place", [(0, 8), (ALIGNED, -8), (-8, 8), (8 << 20, 1)])
def test_a_place_outside_is_not_looked_at(place) -> None:
    memory, _ = region()
    with pytest.raises(ValueError, match="outside"):
        memory.look(*place)


# ---- tensors ------------------------------------------------------------------------

TENSORS = {
    "small": torch.arange(12.0).reshape(3, 4),
    "large": torch.randn(300, 400),
    "bf16": torch.randn(3, 4).bfloat16(),
    "large bf16": torch.randn(300, 40).bfloat16(),
    "bool": torch.tensor([[True, False]]),
    "large bool": torch.rand(200, 200) > 0.5,
    "uint64": torch.tensor([2**63 + 1], dtype=torch.uint64),
    "strided": torch.randn(300, 400).t()[::2],
    "none": torch.zeros(0, 4),
    "scalar": torch.tensor(3.0),
}


@pytest.mark.parametrize("copy", [True, False])
@pytest.mark.parametrize("name", TENSORS)
def test_a_tensor_arrives_as_it_was(name, copy) -> None:
    mine, theirs = region()
    tensor = TENSORS[name]
    part = packed("x", tensor, mine)
    assert isinstance(part.data, bytes) == (tensor.nbytes <= INLINE)
    there = unpacked(part, theirs, copy)
    assert (there.dtype, there.shape) == (tensor.dtype, tensor.shape)
    assert torch.equal(there, tensor)


def test_without_room_it_goes_through_the_socket() -> None:
    mine, theirs = region(64 << 10)
    part = packed("x", TENSORS["large"], mine)
    assert isinstance(part.data, bytes)
    assert torch.equal(unpacked(part, theirs, copy=False), TENSORS["large"])
    assert mine.held == 0


@pytest.mark.parametrize(
    "part",
    [
        Part("x", "FP32", (3,), b"12345678"),
        Part("x", "FP32", (-1, -2), b"12345678"),
        Part("x", "BYTES", (8,), b"12345678"),
        Part("x", "FP32", (4,), (ALIGNED, 12)),
    ],
)
def test_a_part_that_contradicts_itself(part) -> None:
    with pytest.raises(ValueError, match="a message has a tensor of"):
        unpacked(part, region()[0], copy=False)


# ---- the stream ---------------------------------------------------------------------


async def test_frames_may_be_cut_anywhere() -> None:
    heard, lost = [], asyncio.Event()
    one, other = socket.socketpair()
    stream = Stream(replies, heard.extend, lost.set)
    await stream.open(one)
    raw = b""
    for count in (1, 2, 3):
        body = encoded([Ready(True)] * count)
        raw += len(body).to_bytes(4, "little") + body
    for index in range(len(raw)):
        stream.data_received(raw[index : index + 1])
    assert len(heard) == 6
    stream.data_received(raw + raw[:7])
    assert len(heard) == 12
    stream.data_received(raw[7:])
    assert len(heard) == 18
    other.close()
    await lost.wait()


async def test_a_batch_that_is_too_large_goes_in_parts(monkeypatch) -> None:
    """Its length would not fit into the head; a single message stays one."""
    monkeypatch.setattr(stream_module, "LARGEST", 100)
    heard, lost = [], asyncio.Event()
    ends = socket.socketpair()
    says = Stream(replies, heard.append, lambda: None)
    hears = Stream(replies, heard.append, lost.set)
    await says.open(ends[0])
    await hears.open(ends[1])
    sizes = [10] * 9 + [500, 10]
    said = [Failed(n, "", "x" * size, {}) for n, size in enumerate(sizes)]
    for message in said:
        says.say(message)
    says.close()
    await lost.wait()
    assert [message for batch in heard for message in batch] == said
    assert all(len(batch) == 1 or len(encoded(batch)) <= 100 for batch in heard)
    assert len(heard) < len(said)
    hears.close()


async def test_who_speaks_another_language_is_left() -> None:
    lost, heard = asyncio.Event(), []
    one, other = socket.socketpair()
    stream = Stream(replies, heard.append, lost.set)
    await stream.open(one)
    other.sendall((5).to_bytes(4, "little") + b"hello")
    await lost.wait()
    assert heard == []
    other.close()


# ---- calls --------------------------------------------------------------------------


async def test_large_tensors_leave_nothing_behind() -> None:
    big = torch.randn(200_000)
    engine = FakeEngine()
    async with apart(engine) as (remote, answering):
        for _ in range(5):
            asked = [
                remote.predict(Request("identity_fp32", {"x": big * i}))
                for i in range(4)
            ]
            for i, answer in enumerate(await asyncio.gather(*asked)):
                assert torch.equal(answer.outputs[0][1], big * i)
        await remote.servable("linear")  # what was said before it has been heard
        assert (remote.held, answering.held) == (0, 0)


async def test_a_deadline_crosses_and_so_does_what_was_asked_for() -> None:
    engine = FakeEngine()
    async with apart(engine) as (remote, _):
        deadline = asyncio.get_running_loop().time() + 5
        await ask(remote, deadline=deadline, outputs=("y",), version="1", id="seven")
        (seen,) = engine.requests
    assert (seen.deadline, seen.outputs, seen.version, seen.id) == (
        deadline, ("y",), "1", "seven",
    )  # fmt: skip


async def test_who_leaves_here_is_let_go_there() -> None:
    engine = FakeEngine()
    engine.hold.clear()
    big = torch.zeros(50_000)
    async with apart(engine) as (remote, answering):
        leaving = ask(remote, "identity_fp32", big)
        staying = ask(remote)
        await engine.until(lambda: engine.entered == 2)
        leaving.cancel()
        await engine.until(lambda: engine.cancelled == 1)
        assert remote.held > 0, "its bytes are not reused before the engine says so"
        engine.hold.set()
        await staying
        await remote.servable("linear")
        assert (remote.calls, remote.held, answering.calls) == (0, 0, 0)


async def test_who_leaves_before_it_was_heard_leaves_nothing() -> None:
    engine = FakeEngine()
    async with apart(engine) as (remote, answering):
        for _ in range(50):
            leaving = ask(remote, "identity_fp32", torch.zeros(50_000))
            await asyncio.sleep(0)
            leaving.cancel()
        await remote.servable("linear")
        await remote.servable("linear")
        assert (remote.calls, remote.held, answering.calls) == (0, 0, 0)


async def test_refusals_are_typed_there_and_here() -> None:
    async with apart(FakeEngine()) as (remote, _):
        with pytest.raises(ModelNotFound, match="'nobody'"):
            await ask(remote, "nobody")
        with pytest.raises(BadRequest, match="unexpected shape"):
            await ask(remote, x=torch.ones(1, 3))


async def test_a_front_end_that_dies_ends_its_calls() -> None:
    engine, pair = FakeEngine(), Pair()
    engine.hold.clear()
    answering = await pair.introduce(engine)
    asked = [ask(pair.remote) for _ in range(3)]
    await engine.until(lambda: engine.entered == 3)
    pair.remote._calls._stream._transport.abort()
    await engine.until(lambda: engine.cancelled == 3)
    while answering.calls:  # noqa: ASYNC110
        await asyncio.sleep(0)
    await pair.close()
    outcomes = await asyncio.gather(*asked, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {Draining}


# ---- an engine is lost --------------------------------------------------------------


async def test_what_was_not_answered_is_asked_of_the_next() -> None:
    first, second = FakeEngine(), FakeEngine()
    first.hold.clear()
    pair = Pair()
    lost = await pair.introduce(first)
    asked = [
        ask(pair.remote, "identity_fp32", torch.full((9999,), float(i))) for i in (1, 2)
    ]
    await first.until(lambda: first.entered == 2)
    lost.close()
    await first.until(lambda: first.cancelled == 2)
    meanwhile = ask(pair.remote)
    await asyncio.sleep(0)
    assert pair.remote.ready, "for a while nobody needs to know"
    await pair.introduce(second)
    answers = await asyncio.gather(*asked)
    assert [a.outputs[0][1][0].item() for a in answers] == [1, 2]
    await meanwhile
    await pair.remote.servable("linear")
    assert (pair.remote.calls, pair.remote.held) == (0, 0)
    await pair.close()


async def test_a_new_engine_may_come_before_the_last_one_is_missed() -> None:
    first, second = FakeEngine(), FakeEngine()
    first.hold.clear()
    pair, lost = Pair(), []
    pair.remote.when_lost(lambda: lost.append(len(lost)))
    await pair.introduce(first)
    asked = [ask(pair.remote) for _ in range(3)]
    await first.until(lambda: first.entered == 3)
    await pair.introduce(second)
    for answered in asked:
        await answered
    assert (second.entered, lost) == (3, [0])
    await pair.remote.servable("linear")
    assert (pair.remote.calls, lost) == (0, [0])
    await pair.close()


async def test_who_lets_go_of_an_engine_has_not_lost_it() -> None:
    """Told that it is lost, the supervisor would replace a sound engine."""
    pair, lost = Pair(), []
    pair.remote.when_lost(lambda: lost.append("the engine"))
    await pair.introduce(FakeEngine())
    await ask(pair.remote)
    await pair.close()
    assert lost == []


async def test_without_an_engine_a_deadline_is_still_a_deadline() -> None:
    pair = Pair(patience=0.05)
    soon = asyncio.get_running_loop().time() + 0.01
    with pytest.raises(DeadlinePassed):
        await ask(pair.remote, deadline=soon)
    with pytest.raises(EngineLost):
        await ask(pair.remote, deadline=soon + 100)
    with pytest.raises(EngineLost):
        await ask(pair.remote, x=torch.zeros(1, 9999))
    assert (pair.remote.calls, pair.remote.held) == (0, 0)
    assert not pair.remote.ready


async def test_only_so_many_wait() -> None:
    pair = Pair(max_waiting=2)
    waiting = [ask(pair.remote) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(QueueFull):
        await ask(pair.remote, x=torch.zeros(1, 9999))
    assert pair.remote.held == 0
    await pair.close()
    for task in waiting:
        with pytest.raises(Draining):
            await task


class Fragile(FakeEngine):
    """Ends with its link when the model "poison" is run. What ends with a process runs
    no `finally`: this one holds its breath until its end has been seen."""

    def __init__(self, pair: Pair) -> None:
        super().__init__()
        self.pair, self.answering = pair, None
        self.lost = asyncio.Event()

    async def predict(self, request):
        if request.model == "poison":
            self.answering._stream._transport.abort()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
            while self.pair.remote._calls.linked:  # noqa: ASYNC110
                await asyncio.sleep(0)
            self.lost.set()
            raise asyncio.CancelledError
        return await super().predict(request)

    async def load(self, model, version="", deadline=None) -> None:
        pass


async def test_a_poison_is_told_from_the_innocent() -> None:
    """Three engines die of it; every other request is answered."""
    pair = Pair()
    engines = []

    async def replaced() -> None:
        while True:
            engine = Fragile(pair)
            engines.append(engine)
            engine.hold.clear()
            engine.answering = await pair.introduce(engine)
            engine.hold.set()
            await engine.lost.wait()

    replacing = asyncio.create_task(replaced())
    asked = [ask(pair.remote, "poison" if i == 5 else "linear") for i in range(12)]
    outcomes = await asyncio.gather(*asked, return_exceptions=True)
    assert isinstance(outcomes.pop(5), Poisonous)
    assert [type(o).__name__ for o in outcomes] == ["Answer"] * 11
    assert len(engines) == 4
    replacing.cancel()
    await pair.close()


def test_once_to_blame_is_no_proof() -> None:
    """A fresh poison may have run beside a suspect that was alone."""
    pending = Pending(Ask(7, "load"), None, sent=True)
    refusals = []
    for noted in (0, 7, 0, 7):
        pending.sent = True
        refusals.append(pending.engine_lost(noted))
    assert refusals[:3] == [None] * 3
    assert isinstance(refusals[3], Poisonous)


async def test_a_suspect_is_given_up_when_engines_keep_dying() -> None:
    pair = Pair()
    asked = ask(pair.remote)
    while not asked.done():
        engine = FakeEngine()
        engine.hold.clear()
        answering = await pair.introduce(engine)
        reached = asyncio.create_task(engine.until(lambda e=engine: e.entered == 1))
        await asyncio.wait({reached, asked}, return_when=asyncio.FIRST_COMPLETED)
        reached.cancel()
        answering._answers.note = 0  # another one was at work
        answering._stream._transport.abort()
        await asyncio.sleep(0.01)
    with pytest.raises(EngineLost, match="5 times"):
        await asked
    await pair.close()
