"""The front end zttp, frame by frame: what grpc's own client does not do, or hides."""

import asyncio
import contextlib
import json
import struct

import grpc
import pytest
import torch

from protos import open_inference_pb2 as pb
from protos import open_inference_pb2_grpc as rpc
from runtime.asgi.vigil import Vigil
from runtime.commands import Failed, serve
from runtime.counts import Counts
from runtime.limits import CONNECTION_AGE_S, IDLE_S, STUCK_S
from runtime.metrics import Metrics
from runtime.rest import application
from runtime.rest_pages import ServerInfo
from runtime.server import Options
from tests.apart import apart
from tests.fake_engine import FakeEngine
from tests.server_process import skip_without

skip_without("zttp")
import zttp  # noqa: E402 - an extra

from runtime.http2 import connection, connections, server, stream  # noqa: E402

GRPC = [(b"content-type", b"application/grpc"), (b"te", b"trailers")]
INFER = b"/inference.GRPCInferenceService/ModelInfer"
STREAM = b"/inference.GRPCInferenceService/ModelStreamInfer"


@pytest.fixture
async def engine():
    return FakeEngine()


@pytest.fixture
async def made(monkeypatch):
    """Every connection that is taken."""
    found = []
    took = connections.Connections.took

    def seen(self, one) -> None:
        found.append(one)
        took(self, one)

    monkeypatch.setattr(connections.Connections, "took", seen)
    return found


@pytest.fixture
async def serving(engine, made):
    info = ServerInfo("hotset", "0")
    rest = application(engine, Metrics(Counts(10), "0"), info)
    begun = await server.start(
        engine, address="127.0.0.1:0", options=Options(grace=2.0), rest=rest
    )
    async with begun as serving:
        yield serving


class Peer:
    """A client that speaks HTTP/2 and nothing else, as fast or slow as it is told."""

    def __init__(self, reader, writer) -> None:
        self.reader, self.writer = reader, writer
        self.client = zttp.Connection(zttp.CLIENT, protocol=zttp.HTTP2)
        self.client.initiate_connection()
        self.events = []

    def asks(self, path: bytes, body: bytes | None = b"", method=b"POST", headers=GRPC):
        """A request; without a body it stays open."""
        told = [(b"host", b"x"), *headers]
        made = self.client.send_request(method, path, b"2", told)
        if body:
            made.send_data(body)
        if body is not None:
            made.end_message()
        return made

    async def flush(self) -> None:
        self.writer.write(self.client.data_to_send())
        await self.writer.drain()

    async def until(self, kind: type, number: int | None = None):
        """Read until there is such an event, perhaps of one stream."""
        while True:
            for event in self.events:
                if isinstance(event, kind) and number in (
                    None,
                    getattr(event, "stream_id", None),
                ):
                    return event
            await self.flush()
            data = await self.reader.read(1 << 16)
            assert data, "the server has hung up"
            self.client.receive_data(data)
            while (event := self.client.next_event()) is not zttp.NEED_DATA:
                self.events.append(event)
            await self.flush()

    async def window(self, nbytes: int) -> None:
        """From now on streams begin with that."""
        await self.flush()
        self.writer.write(struct.pack(">BHBBIHI", 0, 6, 4, 0, 0, 4, nbytes))

    async def more(self, number: int, nbytes: int) -> None:
        """A stream gets more, and the connection."""
        await self.flush()
        for which in (number, 0):
            self.writer.write(struct.pack(">BHBBII", 0, 4, 8, 0, which, nbytes))

    def body(self, number: int) -> bytes:
        return b"".join(
            e.data
            for e in self.events
            if isinstance(e, zttp.Data) and e.stream_id == number
        )


@pytest.fixture
async def peer(serving):
    reader, writer = await asyncio.open_connection("127.0.0.1", serving.port)
    yield Peer(reader, writer)
    writer.close()


@pytest.fixture
async def stub(serving):
    async with grpc.aio.insecure_channel(serving.address) as channel:
        yield rpc.GRPCInferenceServiceStub(channel)


def predict() -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name="linear", raw_input_contents=[bytes(256)])
    request.inputs.add(name="x", datatype="FP32", shape=[1, 64])
    return request


def framed(message) -> bytes:
    data = message.SerializeToString()
    return b"\0" + struct.pack(">I", len(data)) + data


# -- an engine that is elsewhere ------------------------------------------------------


async def test_an_engine_that_is_asked_over_a_socket(engine) -> None:
    """Many at once, some called off: each gets its own answer."""
    async with (
        apart(engine) as (remote, _),
        await server.start(remote, address="127.0.0.1:0") as serving,
        grpc.aio.insecure_channel(serving.address) as channel,
    ):
        stub = rpc.GRPCInferenceServiceStub(channel)

        async def asked(number: int) -> None:
            request = predict()
            request.id = str(number)
            values = torch.full((64,), float(number))
            request.raw_input_contents[0] = values.numpy().tobytes()
            call = stub.ModelInfer(request)
            if number % 7 == 0:
                call.cancel()
                return
            answer = await call
            assert answer.id == str(number)
            alone = await stub.ModelInfer(request)
            assert answer.raw_output_contents == alone.raw_output_contents

        await asyncio.gather(*(asked(number) for number in range(100)))
        engine.hold.clear()
        waits = stub.ModelInfer(predict())
        before = engine.entered
        await engine.until(lambda: engine.entered > before or engine.waiting)
        waits.cancel()
        await engine.until(lambda: engine.cancelled >= 1)


# -- connections that are retired -----------------------------------------------------


async def test_no_call_is_lost_when_a_connection_is_retired(
    stub, made, monkeypatch
) -> None:
    """zttp would end it, with all calls on it, at 4,096 streams."""
    monkeypatch.setattr(connection, "STREAMS", 40)
    for _ in range(10):
        answers = await asyncio.gather(*(stub.ModelInfer(predict()) for _ in range(60)))
        assert {answer.model_name for answer in answers} == {"linear"}
    assert len(made) > 2


async def test_more_calls_than_zttp_allows_a_connection(stub, made) -> None:
    for _ in range(50):
        answers = await asyncio.gather(
            *(stub.ServerLive(pb.ServerLiveRequest()) for _ in range(100))
        )
        assert all(answer.live for answer in answers)
    assert len(made) == 2


async def test_callers_who_call_off_again_and_again_harm_nobody(
    stub, engine, made
) -> None:
    """zttp would end a connection, with all calls on it, at 256 resets."""
    engine.hold.clear()
    waits = [asyncio.ensure_future(stub.ModelInfer(predict())) for _ in range(5)]
    await engine.until(lambda: engine.entered == 5)
    for number in range(400):
        call = stub.ModelInfer(predict())
        entered = 6 + number
        await engine.until(lambda entered=entered: engine.entered == entered)
        call.cancel()
    engine.hold.set()
    assert {(await wait).model_name for wait in waits} == {"linear"}
    assert len(made) > 2


async def test_what_is_under_way_is_answered_after_a_goaway(
    peer, serving, engine, made
) -> None:
    engine.hold.clear()
    asked = peer.asks(INFER, framed(predict()))
    await peer.flush()
    await engine.until(lambda: engine.entered == 1)
    made[0].retire()
    assert (await peer.until(zttp.GoAway)).error_code == zttp.H2ErrorCode.NO_ERROR
    late = peer.asks(INFER, framed(predict()))  # sent before it was read
    await peer.flush()
    engine.hold.set()
    for one in (asked, late):
        end = await peer.until(zttp.EndOfMessage, one.stream_id)
        assert (b"grpc-status", b"0") in end.trailers


# -- callers who leave, or halt -------------------------------------------------------


async def test_a_call_that_is_reset_ends_at_once(peer, engine, made) -> None:
    engine.hold.clear()
    asked = peer.asks(INFER, framed(predict()))
    await peer.flush()
    await engine.until(lambda: engine.entered == 1)
    asked.reset(zttp.H2ErrorCode.CANCEL)
    await peer.flush()
    await engine.until(lambda: engine.cancelled == 1)
    assert not made[0].streams


async def test_calls_of_a_connection_that_is_lost_end(peer, engine, made) -> None:
    engine.hold.clear()
    for _ in range(3):
        peer.asks(INFER, framed(predict()))
    await peer.flush()
    await engine.until(lambda: engine.entered == 3)
    peer.writer.transport.abort()
    await engine.until(lambda: engine.cancelled == 3)
    assert not made[0].streams


async def test_an_answer_that_does_not_wait_for_the_request(peer, made) -> None:
    """Nobody wants the rest of it: RFC 9113, 8.1."""
    huge = b"\0" + struct.pack(">I", 1 << 31)
    asked = peer.asks(INFER, None)
    asked.send_data(huge)
    head = await peer.until(zttp.Response, asked.stream_id)
    assert (b"grpc-status", b"8") in list(head.headers)
    asked.send_data(b"more")
    reset = await peer.until(zttp.RstStream, asked.stream_id)
    assert reset.error_code == zttp.H2ErrorCode.NO_ERROR
    assert not made[0].streams


async def test_a_request_may_end_after_its_answer(peer, made) -> None:
    """The stream ends then, and not by a reset."""
    await peer.until(zttp.Settings)
    asked = peer.asks(INFER, None)
    asked.send_data(framed(predict()))
    end = await peer.until(zttp.EndOfMessage, asked.stream_id)
    assert (b"grpc-status", b"0") in end.trailers
    asked.end_message()
    await peer.flush()
    await made_of(made)
    async with asyncio.timeout(10):
        while made[0].streams:  # noqa: ASYNC110
            await asyncio.sleep(0)
    assert not made[0]._resets


async def test_a_call_that_is_reset_in_one_breath_with_its_request(
    peer, engine, stub, made
) -> None:
    asked = peer.asks(INFER, framed(predict()))
    asked.reset(zttp.H2ErrorCode.CANCEL)
    await peer.flush()
    assert (await stub.ServerLive(pb.ServerLiveRequest())).live
    right = peer.asks(INFER, framed(predict()))
    await peer.until(zttp.EndOfMessage, right.stream_id)
    assert engine.entered == 1
    assert not made[0].streams


async def test_what_nobody_reads_has_an_end(peer, engine, made, monkeypatch) -> None:
    """A stream's requests are answered one after the other, so the second waits."""
    engine.hold.clear()
    asked = peer.asks(STREAM, None)
    asked.send_data(framed(predict()))
    await peer.flush()
    await engine.until(lambda: engine.entered == 1)
    made[0].most = 1 << 20
    asked.send_data(bytes(4 << 20))
    reset = await peer.until(zttp.RstStream, asked.stream_id)
    assert reset.error_code == zttp.H2ErrorCode.ENHANCE_YOUR_CALM
    await engine.until(lambda: engine.cancelled == 1)
    assert not made[0].streams


async def test_a_caller_that_sends_all_before_it_reads(serving, stub, engine) -> None:
    """Messages that wait hold up neither their own answers nor anybody else."""
    call = stub.ModelStreamInfer()
    request = pb.ModelInferRequest(model_name="linear", id="x" * 1_000_000)
    request.inputs.add(name="x", datatype="FP32", shape=[1, 64])
    request.raw_input_contents.append(bytes(256))
    for _ in range(20):
        await call.write(request)
        assert (await stub.ServerLive(pb.ServerLiveRequest(), timeout=30)).live
    await call.done_writing()
    answers = [answer async for answer in call]
    assert [len(a.infer_response.id) for a in answers] == [1_000_000] * 20


async def test_pings_without_end_that_nobody_reads_the_answers_of(
    peer, stub, made
) -> None:
    """Each leaves 17 bytes to be written; so nothing more is read."""
    await peer.flush()
    pings = struct.pack(">BHBBI", 0, 8, 6, 0, 0) + bytes(8)

    async def ping() -> None:
        for _ in range(1 << 12):
            peer.writer.write(pings * (1 << 12))
            await peer.writer.drain()

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(ping(), 2)
    assert made[0].full
    assert (await stub.ServerLive(pb.ServerLiveRequest())).live


# -- answers larger than the caller's window ------------------------------------------


async def echo(scope, receive, send) -> None:
    """All of the request, back in one piece."""
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message["body"], message["more_body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


@pytest.mark.parametrize("megabytes", [0, 1, 20])
async def test_an_answer_goes_out_in_parts(peer, made, megabytes: int) -> None:
    """Right to the last byte, though it is larger than the caller's window by far."""
    data = bytes(range(256)) * (megabytes << 12) + b"."
    await peer.flush()
    await made_of(made)
    calls_of(made[0])._app = echo
    asked = peer.asks(b"/echo", None, b"POST", [])
    for at in range(0, len(data), 1 << 15):
        asked.send_data(data[at : at + (1 << 15)])
        await peer.flush()
        while peer.client.has_pending_send():
            await peer.until(zttp.WindowUpdate)
            peer.events.clear()
    asked.end_message()
    await peer.until(zttp.EndOfMessage, asked.stream_id)
    assert peer.body(asked.stream_id) == data


async def test_an_answer_nobody_takes_waits_in_parts(peer, made) -> None:
    async def large(scope, receive, send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": bytes(64 << 20)})

    await peer.flush()
    await made_of(made)
    calls_of(made[0])._app = large
    peer.asks(b"/large", b"", b"GET", [])
    await peer.flush()
    async with asyncio.timeout(30):
        while not (made[0].streams and made[0].unsent):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    (waiting,) = made[0].streams.values()
    assert 0 < waiting._out.pending_bytes <= stream.PART
    assert made[0].unsent


async def made_of(made) -> None:
    async with asyncio.timeout(10):
        while not made:  # noqa: ASYNC110 - the connection is on its way
            await asyncio.sleep(0)


class Sized:
    """Gives answers of a size, in place of a method's function."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes

    async def __call__(self, request, call) -> pb.ModelInferResponse:
        return pb.ModelInferResponse(raw_output_contents=[bytes(self.nbytes)])


def sized(connection, nbytes: int) -> None:
    """ModelInfer gives answers of so many bytes."""
    calls_of(connection)._direct[INFER]._function = Sized(nbytes)


def calls_of(connection):
    return connection._begin.__self__


async def test_an_answer_is_whole_though_its_request_is_not(peer, made) -> None:
    await peer.window(1000)
    await peer.until(zttp.Settings)
    await made_of(made)
    sized(made[0], 10_000)
    asked = peer.asks(INFER, None)
    asked.send_data(framed(predict()))
    await peer.until(zttp.Data, asked.stream_id)
    await peer.more(asked.stream_id, 1 << 20)
    end = await peer.until(zttp.EndOfMessage, asked.stream_id)
    assert (b"grpc-status", b"0") in end.trailers
    assert len(peer.body(asked.stream_id)) > 10_000


async def test_a_deadline_that_passes_while_an_answer_waits(peer, made) -> None:
    """Its head has gone, so there is no way left to tell but a reset."""
    await peer.window(1000)
    await peer.until(zttp.Settings)
    await made_of(made)
    sized(made[0], 3 * stream.PART)
    asked = peer.asks(
        INFER, framed(predict()), headers=[*GRPC, (b"grpc-timeout", b"300m")]
    )
    await peer.until(zttp.RstStream, asked.stream_id)
    heads = [e for e in peer.events if isinstance(e, zttp.Response)]
    assert len(heads) == 1
    assert not made[0].streams


@pytest.mark.parametrize("nbytes", [20_000, 3 * stream.PART])
async def test_a_stop_lets_answers_go_out(peer, serving, made, nbytes: int) -> None:
    await peer.window(1000)
    await peer.until(zttp.Settings)
    await made_of(made)
    sized(made[0], nbytes)
    asked = peer.asks(INFER, framed(predict()))
    await peer.until(zttp.Data, asked.stream_id)
    stopping = asyncio.create_task(serving.stop(grace=30))
    await peer.until(zttp.GoAway)
    assert made[0].sending
    await peer.more(asked.stream_id, 1 << 24)
    await peer.until(zttp.EndOfMessage, asked.stream_id)
    assert len(peer.body(asked.stream_id)) > nbytes
    await stopping


async def test_a_stop_does_not_wait_for_who_takes_nothing(peer, serving, made) -> None:
    await peer.window(1000)
    await peer.until(zttp.Settings)
    await made_of(made)
    sized(made[0], 3 * stream.PART)
    asked = peer.asks(INFER, framed(predict()))
    await peer.until(zttp.Data, asked.stream_id)
    async with asyncio.timeout(10):
        await serving.stop(grace=0.3)
    with contextlib.suppress(ConnectionError):
        while await peer.reader.read(1 << 16):
            pass
    assert made[0].over


async def test_what_waits_is_progress_only_if_some_of_it_goes(peer, made) -> None:
    """Pings and settings are no answers taken."""
    await peer.window(1000)
    await peer.until(zttp.Settings)
    await made_of(made)
    sized(made[0], 20_000)
    now = made[0].loop.time()
    assert made[0].stalled(now + 100) == 0
    asked = peer.asks(INFER, framed(predict()))
    await peer.until(zttp.Data, asked.stream_id)
    peer.writer.write(struct.pack(">BHBBI", 0, 8, 6, 0, 0) + bytes(8))
    await peer.window(1000)
    await peer.until(zttp.Ping)
    assert made[0].stalled(now + 200) > 99
    await peer.more(asked.stream_id, 1 << 20)
    await peer.until(zttp.EndOfMessage, asked.stream_id)
    assert made[0].stalled(now + 300) == 0


# -- what is no gRPC ------------------------------------------------------------------


async def test_rest_over_http2(peer) -> None:
    asked = peer.asks(b"/v2/health/live", b"", b"GET", [])
    head = await peer.until(zttp.Response, asked.stream_id)
    assert head.status_code == 200


async def test_an_error_page_has_its_body_and_head_has_none(peer) -> None:
    wrong = peer.asks(b"/nowhere?x=%20", b"", b"GET", [])
    assert (await peer.until(zttp.Response, wrong.stream_id)).status_code == 404
    await peer.until(zttp.EndOfMessage, wrong.stream_id)
    assert peer.body(wrong.stream_id)
    head = peer.asks(b"/v2/health/live", b"", b"HEAD", [])
    await peer.until(zttp.Response, head.stream_id)
    await peer.until(zttp.EndOfMessage, head.stream_id)
    assert not peer.body(head.stream_id)


async def test_an_application_that_fails_ends_its_stream_only(
    peer, serving, made
) -> None:
    async def fails(scope, receive, send) -> None:
        raise ZeroDivisionError

    await peer.flush()
    await made_of(made)
    calls_of(made[0])._app = fails
    wrong = peer.asks(b"/wrong", b"", b"GET", [])
    reset = await peer.until(zttp.RstStream, wrong.stream_id)
    assert reset.error_code == zttp.H2ErrorCode.INTERNAL_ERROR
    assert (made[0]._resets, made[0].streams) == (1, {})
    right = peer.asks(INFER, framed(predict()))
    assert await peer.until(zttp.EndOfMessage, right.stream_id)


async def test_no_more_calls_are_taken_than_there_is_room_for(
    peer, engine, monkeypatch
) -> None:
    monkeypatch.setattr(server, "PENDING_HARD", 1)
    engine.hold.clear()
    first = peer.asks(INFER, framed(predict()))
    await peer.flush()
    await engine.until(lambda: engine.entered == 1)
    second = peer.asks(INFER, framed(predict()))
    reset = await peer.until(zttp.RstStream, second.stream_id)
    assert reset.error_code == zttp.H2ErrorCode.REFUSED_STREAM
    engine.hold.set()
    await peer.until(zttp.EndOfMessage, first.stream_id)
    assert engine.entered == 1


# -- the limits of a connection -------------------------------------------------------


class There:
    """Stands for a connection that is looked at."""

    def __init__(self, **said) -> None:
        self.sending = self.retired = self.over = False
        self.streams: list[int] = []
        self.heard = self.born = self.waits = self.ended = 0.0
        self.became = ""
        self.__dict__.update(said)

    def stalled(self, now: float) -> float:
        return self.waits

    def close(self) -> None:
        self.became = "closed"

    def abort(self) -> None:
        self.became = "aborted"

    def retire(self) -> None:
        self.became = "retired"


@pytest.mark.parametrize(
    ("said", "now", "became"),
    [
        ({}, IDLE_S - 1, ""),
        ({}, IDLE_S + 1, "closed"),
        ({"streams": [1]}, IDLE_S + 1, ""),
        ({"sending": True}, IDLE_S + 1, ""),
        ({"streams": [1]}, CONNECTION_AGE_S + 1, "retired"),
        ({"heard": CONNECTION_AGE_S}, CONNECTION_AGE_S + 1, "retired"),
        ({"retired": True}, 1, "closed"),
        ({"retired": True, "streams": [1]}, 1, ""),
        ({"retired": True, "sending": True}, 1, ""),
        ({"waits": STUCK_S - 1.0, "streams": [1], "sending": True}, 1, ""),
        ({"waits": STUCK_S + 1.0, "streams": [1], "sending": True}, 1, "aborted"),
        ({"over": True}, connections.LOOK_S - 1, ""),
        ({"over": True}, connections.LOOK_S + 1, "aborted"),
    ],
)
def test_a_connection_is_held_to_its_limits(said, now, became) -> None:
    one = There(**said)
    connections.look_at(one, now)
    assert one.became == became


def connections_of(serving):
    return serving._end.__self__._connections


async def test_all_are_looked_at_as_long_as_somebody_is_there(
    serving, monkeypatch
) -> None:
    looks = []
    monkeypatch.setattr(connections, "LOOK_S", 0.01)
    monkeypatch.setattr(connections, "look_at", lambda one, now: looks.append(one))
    for _ in range(2):
        _, writer = await asyncio.open_connection("127.0.0.1", serving.port)
        async with asyncio.timeout(10):
            while len(looks) < 3:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        writer.close()
        async with asyncio.timeout(10):
            while connections_of(serving):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert len(set(looks)) == 1, "that one, again and again"
        looks.clear()


async def test_rest_that_is_under_way_is_answered_before_the_end(
    engine, monkeypatch
) -> None:
    """One vigil sees it and gRPC: what counts the one counts the other."""
    vigil = Vigil()
    rest = application(
        engine, Metrics(Counts(10), "0"), ServerInfo("hotset", "0"), vigil=vigil
    )
    begun = await server.start(
        engine, address="127.0.0.1:0", rest=rest, vigil=vigil, options=Options()
    )
    async with begun as serving:
        engine.hold.clear()
        reader, writer = await asyncio.open_connection("127.0.0.1", serving.port)
        peer = Peer(reader, writer)
        body = json.dumps(
            {"inputs": [{"name": "x", "shape": [1, 64], "datatype": "FP32",
                         "data": [0.0] * 64}]}
        ).encode()  # fmt: skip
        asked = peer.asks(
            b"/v2/models/linear/infer",
            body,
            headers=[(b"content-type", b"application/json")],
        )
        await peer.flush()
        await engine.until(lambda: engine.entered == 1)
        assert len(vigil.open) == 1
        stopping = asyncio.create_task(serving.stop(grace=30))
        await peer.until(zttp.GoAway)
        engine.hold.set()
        head = await peer.until(zttp.Response, asked.stream_id)
        assert head.status_code == 200
        await stopping
        writer.close()


def test_without_the_extra_serve_says_what_to_install(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(serve, "find_spec", lambda name: None)
    with pytest.raises(Failed, match=r"pip install 'hotset\[zttp\]'"):
        serve.serve(store=str(tmp_path), frontend="zttp")
