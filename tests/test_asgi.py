"""gRPC over ASGI, without a server: what one may hand us, and what it is handed."""

import asyncio
import base64
import gzip
import random
import threading
import zlib

import pytest
import structlog
from google.rpc import status_pb2

from protos import open_inference_pb2 as pb
from runtime.asgi.application import Application
from runtime.asgi.ended import Ended
from runtime.asgi.framing import framed, framed_like, length_of, message_of
from runtime.asgi.metadata import check_size, timeout_of, told
from runtime.asgi.telling import status_for
from runtime.asgi.theirs import Theirs
from runtime.asgi.unary import FEW, Unary
from runtime.asgi.vigil import ASKED, Caller, Vigil
from runtime.errors import BadRequest, NoRoom
from runtime.limits import BODY_S, Options
from runtime.services import services_of
from runtime.status import Code, Status, status_of
from tests.fake_engine import FakeEngine

SERVICE = "/inference.GRPCInferenceService"
LIMIT = 4096
DISCONNECT = {"type": "http.disconnect"}


# ---- headers and trailers ---------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (b"1H", 3600),
        (b"2M", 120),
        (b"3S", 3),
        (b"250m", 0.25),
        (b"7u", 7e-6),
        (b"9n", 9e-9),
    ],
)
def test_a_timeout_has_its_unit(text, seconds):
    assert timeout_of(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", [b"", b"1", b"S", b"-1S", b"1.5S", b"1s", b"123456789S"]
)
def test_a_timeout_that_is_none_ends_the_call(text):
    with pytest.raises(Ended):
        timeout_of(text)


def test_a_text_is_percent_encoded_as_grpc_wants_it():
    trailers = dict(told(Status(Code.NOT_FOUND, 404, "100 % 'é' \n")))
    assert trailers[b"grpc-status"] == b"5"
    assert trailers[b"grpc-message"] == b"100 %25 '%C3%A9' %0A"
    assert b"grpc-status-details-bin" not in trailers


def test_a_hint_travels_in_the_details():
    trailers = dict(told(status_of(NoRoom("no room", retry_after=1.5))))
    encoded = trailers[b"grpc-status-details-bin"]
    assert not encoded.endswith(b"=")
    details = base64.b64decode(encoded + b"=" * (-len(encoded) % 4))
    assert status_pb2.Status.FromString(details).code == Code.RESOURCE_EXHAUSTED


def test_headers_over_16_kib_are_refused():
    check_size({b"a": b"b" * 16_000})
    with pytest.raises(Ended) as caught:
        check_size({b"a": b"b" * 17_000})
    assert caught.value.status.code is Code.RESOURCE_EXHAUSTED


def test_what_is_told_holds_no_frames():
    kept = BadRequest("kept")
    try:
        raise kept
    except BadRequest:
        assert kept.__traceback__ is not None
    assert status_for(kept, "/a/B").text == "kept"
    assert kept.__traceback__ is None


# ---- frames -----------------------------------------------------------------------


def test_a_frame_goes_there_and_back():
    frame = framed(b"hello")
    assert length_of(frame, LIMIT) == 5
    assert message_of(frame[0], frame[5:], b"identity", LIMIT) == b"hello"


@pytest.mark.parametrize(
    ("encoding", "payload"),
    [
        (b"gzip", gzip.compress(b"x" * 2000, mtime=0)),
        (b"deflate", zlib.compress(b"x" * 2000)),
    ],
)
def test_a_compressed_message_is_read_and_answered_alike(encoding, payload):
    assert message_of(1, payload, encoding, LIMIT) == b"x" * 2000
    answer = framed_like(b"y" * 2000, encoding)
    assert answer[0] == 1
    assert message_of(1, answer[5:], encoding, LIMIT) == b"y" * 2000
    assert framed_like(b"y", encoding)[0] == 0  # not worth it


@pytest.mark.parametrize(
    ("flag", "payload", "encoding", "code"),
    [
        (2, b"", b"identity", Code.INTERNAL),
        (1, b"x", b"identity", Code.INTERNAL),
        (1, b"x", b"zstd", Code.UNIMPLEMENTED),
        (1, b"x", b"gzip", Code.INTERNAL),
        (1, gzip.compress(b"x" * 100, mtime=0)[:-9], b"gzip", Code.INTERNAL),
        (1, gzip.compress(bytes(1 << 20), mtime=0), b"gzip", Code.RESOURCE_EXHAUSTED),
    ],
)
def test_a_message_that_cannot_be_read_ends_the_call(flag, payload, encoding, code):
    with pytest.raises(Ended) as caught:
        message_of(flag, payload, encoding, LIMIT)
    assert caught.value.status.code is code


# ---- a future that is somebody else's ----------------------------------------------


async def waiting_for(future):
    """A task that waits for it, and has begun to."""

    async def wait():
        return await Theirs(future)

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    return task


async def test_their_future_is_waited_for():
    loop = asyncio.get_running_loop()
    done, failed, there = loop.create_future(), loop.create_future(), None
    tasks = [await waiting_for(done), await waiting_for(failed)]
    done.set_result("brought")
    failed.set_exception(BadRequest("refused"))
    assert await tasks[0] == "brought"
    with pytest.raises(BadRequest, match="refused"):
        await tasks[1]
    there = await Theirs(done)
    assert there == "brought"


async def test_who_is_cancelled_leaves_their_future_alone():
    future = asyncio.get_running_loop().create_future()
    task, other = await waiting_for(future), await waiting_for(future)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not future.done()
    future.set_result("brought")  # a cancelled one would refuse it
    assert await other == "brought"


async def test_a_cancel_that_comes_with_the_result_ends_the_task():
    future = asyncio.get_running_loop().create_future()
    task = await waiting_for(future)
    future.set_result("brought")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert future.result() == "brought"


async def test_two_cancels_are_one():
    future = asyncio.get_running_loop().create_future()
    task = await waiting_for(future)
    task.cancel()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not future.done()


# ---- calls ------------------------------------------------------------------------


class Server:
    """What an ASGI server hands to one call: a body in parts, then perhaps the end."""

    def __init__(self, path, *parts, headers=(), leaves=False) -> None:
        self.scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "headers": [(b"content-type", b"application/grpc"), *headers],
        }
        self._parts = list(parts)
        self.left = asyncio.Event()
        if leaves:
            self.left.set()
        self.sent: list = []

    def receive(self):
        """A future, as pyvoy's; after the body the trap: empty, at once, for ever."""
        future = asyncio.get_running_loop().create_future()
        if self._parts:
            body = self._parts.pop(0)
            future.set_result(
                {"type": "http.request", "body": body, "more_body": bool(self._parts)}
            )
        elif self.left.is_set():
            future.set_result(DISCONNECT)
        else:
            future.set_result({"type": "http.request", "body": b"", "more_body": False})
        return future

    async def send(self, event) -> None:
        self.sent.append(event)

    @property
    def trailers(self) -> dict:
        """Wherever they are: behind the messages, or in the headers."""
        *_, last = (e for e in self.sent if e.get("headers"))
        return dict(last["headers"])

    @property
    def code(self) -> int:
        return int(self.trailers[b"grpc-status"])

    @property
    def messages(self) -> bytes:
        return b"".join(e.get("body", b"") for e in self.sent)


class Told(list):
    """What was sent; `seen` hears of it."""

    def __init__(self, seen) -> None:
        super().__init__()
        self._seen = seen

    def append(self, event) -> None:
        self._seen.append("sent")
        super().append(event)


@pytest.fixture
async def engine():
    return FakeEngine()


@pytest.fixture
async def vigil():
    return Vigil()


@pytest.fixture
async def app(engine, vigil):
    async def rest(scope, receive, send):
        await send({"type": "rest"})

    services = services_of(engine, Options(max_message_bytes=LIMIT))
    return Application(services.all, rest, vigil, LIMIT)


def predict():
    request = pb.ModelInferRequest(model_name="linear", raw_input_contents=[bytes(256)])
    request.inputs.add(name="x", datatype="FP32", shape=[1, 64])
    return framed(request.SerializeToString())


async def called(app, path, *parts, **more):
    server = Server(f"{SERVICE}/{path}", *parts, **more)
    await app(server.scope, server.receive, server.send)
    return server


@pytest.mark.parametrize("size", [1, 3, 5, 6, 100, 10_000])
async def test_a_message_may_come_in_parts_of_any_size(app, vigil, size):
    body = predict()
    parts = [body[i : i + size] for i in range(0, len(body), size)]
    server = await called(app, "ModelInfer", *parts)
    assert server.code == 0
    answer = pb.ModelInferResponse.FromString(server.messages[5:])
    assert answer.model_name == "linear"
    assert not vigil.open


async def test_who_is_alone_asks_for_the_body_before_its_task_runs(app, vigil):
    server, asked = Server(f"{SERVICE}/ModelInfer", predict()), []

    def receive():
        asked.append("asked")
        return server.receive()

    call = app(server.scope, receive, server.send)
    assert asked == ["asked"]
    await call
    assert server.code == 0
    assert asked == ["asked"]
    assert not vigil.open


async def test_among_others_the_task_asks_for_its_body(app, engine):
    _, calls = await all_at_once(app, engine, 1)
    server, asked = Server(f"{SERVICE}/ModelInfer", predict()), []

    def receive():
        asked.append("asked")
        return server.receive()

    call = app(server.scope, receive, server.send)
    assert asked == []
    await call
    assert (server.code, asked) == (0, ["asked"])
    await asyncio.gather(*calls)


async def all_at_once(app, engine, count):
    """Calls that wait in the engine, and are let go."""
    engine.hold.clear()
    servers = [Server(f"{SERVICE}/ModelInfer", predict()) for _ in range(count)]
    calls = [
        asyncio.create_task(app(server.scope, server.receive, server.send))
        for server in servers
    ]
    await engine.until(lambda: engine.waiting == count)
    engine.hold.set()
    return servers, calls


@pytest.mark.parametrize("count", [1, 3, FEW])
async def test_what_was_answered_in_one_turn_goes_out_together(
    app, engine, vigil, monkeypatch, count
):
    seen, answered = [], Unary._written

    def watched(self, reply):
        seen.append("made")
        return answered(self, reply)

    monkeypatch.setattr(Unary, "_written", watched)
    servers, calls = await all_at_once(app, engine, count)
    for server in servers:
        monkeypatch.setattr(server, "sent", Told(seen))
    await asyncio.gather(*calls)
    assert seen == ["made"] * count + ["sent"] * (3 * count)
    assert [server.code for server in servers] == [0] * count
    assert not vigil.open


async def test_a_crowd_does_not_wait_for_its_last(app, engine, monkeypatch):
    seen, written = [], Unary._written

    def watched(self, reply):
        seen.append("made")
        return written(self, reply)

    monkeypatch.setattr(Unary, "_written", watched)
    servers, calls = await all_at_once(app, engine, FEW + 1)
    for server in servers:
        monkeypatch.setattr(server, "sent", Told(seen))
    await asyncio.gather(*calls)
    assert seen[:4] == ["made", "sent", "sent", "sent"]
    assert [server.code for server in servers] == [0] * (FEW + 1)


async def test_who_is_cut_before_the_answer_goes_out_hears_why(app, engine, vigil):
    servers, calls = await all_at_once(app, engine, 2)
    await engine.until(lambda: engine.waiting == 0)
    vigil.cut()
    await asyncio.gather(*calls)
    assert [server.code for server in servers] == [Code.UNAVAILABLE] * 2
    assert all(server.messages == b"" for server in servers)


@pytest.mark.parametrize(
    ("parts", "code"),
    [
        ([b""], Code.INTERNAL),
        ([b"\0\0\0\0"], Code.INTERNAL),
        ([b"\0\0\0\0\7abc"], Code.INTERNAL),
        ([b"\0\xff\xff\xff\xff"], Code.RESOURCE_EXHAUSTED),
        ([b"\0\0\0\0\2\xff\xff"], Code.INVALID_ARGUMENT),
    ],
)
async def test_a_broken_body_ends_the_call(app, engine, parts, code):
    server = await called(app, "ModelInfer", *parts)
    assert server.code == code
    assert [event["type"] for event in server.sent] == [
        "http.response.start",
        "http.response.body",
    ]
    assert engine.entered == 0


async def test_a_message_over_the_limit_is_not_read_to_its_end(app):
    big = b"\0" + (LIMIT + 1).to_bytes(4, "big")
    server = await called(app, "ModelInfer", big, b"never read")
    assert server.code == Code.RESOURCE_EXHAUSTED


async def test_who_leaves_early_is_told_nothing(app, engine):
    server = await called(app, "ModelInfer", leaves=True)
    assert server.sent == []
    assert engine.entered == 0


@pytest.mark.parametrize("path", ["ModelInfer", "ModelStreamInfer"])
async def test_who_leaves_before_the_answer_is_no_error_of_ours(engine, path):
    ends = []
    services = services_of(engine, Options())
    app = Application(services.all, None, Vigil(), LIMIT, lambda *end: ends.append(end))
    server = Server(f"{SERVICE}/{path}", predict())

    async def gone(event):
        raise BrokenPipeError

    with structlog.testing.capture_logs() as logged:
        await app(server.scope, server.receive, gone)
    assert [code for _, code in ends] == [Code.CANCELLED]
    assert logged == []


@pytest.mark.parametrize("size", [1 << 20, (1 << 20) + 1])
async def test_a_large_answer_goes_out_behind_its_prefix(engine, size):
    services = services_of(engine, Options())
    app = Application(services.all, None, Vigil(), 1 << 30)
    request = pb.ModelInferRequest(model_name="identity_uint8")
    request.inputs.add(name="x", datatype="UINT8", shape=[size])
    request.raw_input_contents.append(bytes(size))
    body = framed(request.SerializeToString())
    server = await called(app, "ModelInfer", body[:3], body[3:700], body[700:])
    assert server.code == 0
    assert length_of(server.messages[:5], 1 << 30) == len(server.messages) - 5
    answer = pb.ModelInferResponse.FromString(server.messages[5:])
    assert len(answer.raw_output_contents[0]) == size


@pytest.mark.parametrize(("size", "beside"), [(3000, False), (100_000, True)])
@pytest.mark.parametrize(
    ("path", "made"),
    [
        ("ModelInfer", ["decompressobj", "compressobj"]),
        ("ModelStreamInfer", ["decompressobj"]),
    ],
)
async def test_what_takes_zlib_long_is_done_beside_the_loop(
    engine, monkeypatch, path, made, size, beside
):
    seen = []

    def watched(name, original):
        def make(*args):
            here = threading.current_thread() is threading.main_thread()
            seen.append((name, not here))
            return original(*args)

        monkeypatch.setattr(zlib, name, make)

    services = services_of(engine, Options())
    app = Application(services.all, None, Vigil(), 1 << 20)
    request = pb.ModelInferRequest(model_name="identity_uint8")
    request.inputs.add(name="x", datatype="UINT8", shape=[size])
    request.raw_input_contents.append(random.Random(1).randbytes(size))
    body = framed_like(request.SerializeToString(), b"gzip")
    for name in ("decompressobj", "compressobj"):
        watched(name, getattr(zlib, name))
    server = await called(app, path, body, headers=[(b"grpc-encoding", b"gzip")])
    assert server.code == 0
    assert seen == [(name, beside) for name in made]


async def test_a_stream_answers_and_ends(app):
    server = await called(app, "ModelStreamInfer", predict(), predict() + predict())
    assert server.code == 0
    assert sum(event.get("more_body", False) for event in server.sent) == 3


async def test_a_stream_cut_within_a_message_says_so(app):
    server = await called(app, "ModelStreamInfer", predict(), predict()[:9])
    assert server.code == Code.INTERNAL
    assert sum(event.get("more_body", False) for event in server.sent) == 1


async def test_what_is_no_grpc_is_for_rest(app):
    server = Server("/v2")
    server.scope["headers"] = []
    await app(server.scope, server.receive, server.send)
    assert server.sent == [{"type": "rest"}]


@pytest.mark.parametrize("path", ["ModelInfer", "ModelStreamInfer"])
@pytest.mark.parametrize("headers", [[], [(b"content-type", b"text/plain")]])
async def test_a_path_alone_is_no_grpc(app, engine, path, headers):
    """A web page may post plain text to anybody, without asking."""
    server = Server(f"{SERVICE}/{path}", predict())
    server.scope["headers"] = headers
    await app(server.scope, server.receive, server.send)
    assert server.sent == [{"type": "rest"}]
    assert engine.entered == 0


# ---- the watch --------------------------------------------------------------------


async def test_who_leaves_while_it_waits_is_cancelled(app, engine, vigil):
    engine.hold.clear()
    server = Server(f"{SERVICE}/ModelInfer", predict())
    call = asyncio.ensure_future(app(server.scope, server.receive, server.send))
    await engine.until(lambda: engine.entered == 1)
    server.left.set()
    await call
    assert engine.cancelled == 1
    assert server.sent == []
    assert not vigil.open


async def test_a_call_without_a_wait_of_its_own_ends_at_its_deadline(app, engine):
    """Health's Watch waits for ever: the watch ends it."""
    server = Server(
        "/grpc.health.v1.Health/Watch",
        framed(b""),
        headers=[(b"grpc-timeout", b"150m")],
    )
    await app(server.scope, server.receive, server.send)
    assert server.code == Code.DEADLINE_EXCEEDED


class Slow(Server):
    """Half of a body, and then nothing; what waits for more is the server's own."""

    def __init__(self, *args, **more) -> None:
        super().__init__(*args, **more)
        self.pending: list[asyncio.Future] = []

    def receive(self):
        if len(self._parts) > 1:
            return super().receive()
        self.pending.append(asyncio.get_running_loop().create_future())
        return self.pending[-1]


@pytest.mark.parametrize("parts", [(), (b"\0\0",), (predict()[:50],)])
async def test_a_deadline_is_kept_while_the_body_is_read(app, engine, parts):
    late = [(b"grpc-timeout", b"150m")]
    server = Slow(f"{SERVICE}/ModelInfer", *parts, b"", headers=late)
    await app(server.scope, server.receive, server.send)
    assert server.code == Code.DEADLINE_EXCEEDED
    assert engine.entered == 0
    assert [future.cancelled() for future in server.pending] == [False]


async def test_a_body_has_its_time(app, vigil):
    server = Slow(f"{SERVICE}/ModelInfer", predict()[:50], b"")
    call = asyncio.ensure_future(app(server.scope, server.receive, server.send))
    while not server.pending:  # noqa: ASYNC110
        await asyncio.sleep(0)
    now = asyncio.get_running_loop().time()
    vigil._tick()
    vigil._look(now + BODY_S - 1)
    await asyncio.sleep(0)
    assert not call.done()
    vigil._look(now + BODY_S + 1)
    await call
    assert server.code == Code.DEADLINE_EXCEEDED
    vigil._timer.cancel()


async def test_a_cut_tells_those_who_wait(app, engine, vigil):
    engine.hold.clear()
    server = Server(f"{SERVICE}/ModelInfer", predict())
    call = asyncio.ensure_future(app(server.scope, server.receive, server.send))
    await engine.until(lambda: engine.entered == 1)
    vigil.cut()
    await call
    assert server.code == Code.UNAVAILABLE


async def test_so_many_are_asked_about_at_a_time_and_all_in_turn(vigil):
    asked: list[int] = []

    def receiver(number):
        def receive():
            asked.append(number)
            return asyncio.get_running_loop().create_future()

        return receive

    callers = [Caller(receiver(number)) for number in range(2 * ASKED + 1)]
    tasks = [asyncio.ensure_future(asyncio.sleep(60)) for _ in callers]
    for caller, task in zip(callers, tasks, strict=True):
        caller.watched = True
        vigil.open[task] = caller
    now = asyncio.get_running_loop().time()
    vigil._tick()
    assert asked == []  # they are new
    for turn in (1, 2):
        vigil._look(now)
        assert len(asked) == turn * ASKED
    vigil._look(now)
    assert sorted(set(asked)) == list(range(len(callers)))
    vigil._timer.cancel()
    for task in tasks:
        task.cancel()
