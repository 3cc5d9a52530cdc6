"""What a hostile or careless client sends: everything ends typed, the server lives."""

import asyncio
import contextlib
import random
import struct

import grpc
import pytest

from protos import open_inference_pb2 as pb
from protos import open_inference_pb2_grpc
from runtime.limits import Options

METHOD = "/inference.GRPCInferenceService/ModelInfer"
MIB = 1 << 20


def predict(size=256, model="linear"):
    request = pb.ModelInferRequest(model_name=model, raw_input_contents=[bytes(size)])
    request.inputs.add(name="x", datatype="FP32", shape=[1, 64])
    return request


async def assert_serves(stub):
    answer = await stub.ModelInfer(predict(), wait_for_ready=True, timeout=10)
    assert answer.model_name == "linear"


@pytest.fixture
async def small(begin, engine):
    """A stub of a server that takes a mebibyte at most."""
    options = Options(max_message_bytes=MIB)
    async with (
        await begin(engine, options) as serving,
        grpc.aio.insecure_channel(serving.address) as channel,
    ):
        yield open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)


# ---- sizes ------------------------------------------------------------------------


async def test_a_message_over_the_limit_is_refused(small, engine, refused):
    told = await refused(small.ModelInfer(predict(MIB + 1)))
    assert told.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert engine.entered == 0
    await assert_serves(small)


async def test_a_message_that_inflates_over_the_limit_is_refused(small, refused):
    call = small.ModelInfer(predict(32 * MIB), compression=grpc.Compression.Gzip)
    told = await refused(call)
    assert told.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    await assert_serves(small)


async def test_an_answer_over_the_limit_is_refused(small, refused):
    request = pb.ModelInferRequest(model_name="identity_int64")
    tensor = request.inputs.add(name="x", datatype="INT64", shape=[MIB // 4])
    tensor.contents.int64_contents.extend([1] * (MIB // 4))  # one byte each, then eight
    request.parameters["binary_data_output"].bool_param = True
    told = await refused(small.ModelInfer(request))
    assert told.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    await assert_serves(small)


async def test_a_message_of_16_mebibytes_is_served(serving):
    size = 16 * MIB
    request = pb.ModelInferRequest(model_name="identity_fp32")
    request.inputs.add(name="x", datatype="FP32", shape=[size // 4])
    request.raw_input_contents.append(random.Random(1).randbytes(size))
    anything = [("grpc.max_receive_message_length", -1)]
    async with grpc.aio.insecure_channel(serving.address, options=anything) as channel:
        stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)
        response = await stub.ModelInfer(request)
    assert response.raw_output_contents[0] == request.raw_input_contents[0]


async def test_metadata_over_the_limit_is_refused(stub, engine, refused):
    headers = [("x-padding", "a" * 20_000)]
    told = await refused(stub.ModelInfer(predict(), metadata=headers))
    assert told.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert engine.entered == 0
    await assert_serves(stub)


async def test_many_parameters_are_just_slow(stub):
    request = predict()
    for number in range(20_000):
        request.parameters[f"p{number}"].int64_param = number
    assert (await stub.ModelInfer(request)).model_name == "linear"


# ---- bytes ------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [101, 100_000])
async def test_nesting_without_end_is_refused(channel, stub, refused, depth):
    told = await refused(channel.unary_unary(METHOD)(b"\x0b" * depth))
    assert told.code() is grpc.StatusCode.INVALID_ARGUMENT
    await assert_serves(stub)


async def test_2000_mutated_requests_end_typed(channel, stub):
    rng = random.Random(7)
    seeds = [
        predict().SerializeToString(),
        predict(model="embedding").SerializeToString(),
    ]
    call = channel.unary_unary(METHOD)

    async def send():
        raw = bytearray(rng.choice(seeds))
        for _ in range(rng.randrange(1, 6)):
            place = rng.randrange(len(raw))
            match rng.randrange(4):
                case 0:
                    raw[place] = rng.randrange(256)
                case 1:
                    raw[place:place] = rng.randbytes(rng.randrange(1, 12))
                case 2:
                    del raw[place : place + rng.randrange(1, 12)]
                case 3:
                    raw[place] ^= 1 << rng.randrange(8)
            raw = raw or bytearray(b"\x00")
        return await call(bytes(raw)).code()

    codes = set()
    for _ in range(20):
        codes |= set(await asyncio.gather(*(send() for _ in range(100))))
    assert {code.name for code in codes} == {"OK", "INVALID_ARGUMENT", "NOT_FOUND"}
    await assert_serves(stub)


# ---- frames -----------------------------------------------------------------------

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
GOAWAY, ENHANCE_YOUR_CALM = 7, 11


def frame(kind, flags, stream, payload):
    head = struct.pack(">I", len(payload))[1:]
    return head + struct.pack(">BBI", kind, flags, stream) + payload


def headers(stream):
    """POST ModelInfer in HPACK literals."""
    path = METHOD.encode()
    block = b"\x83\x86\x04" + bytes([len(path)]) + path
    block += b"\x01\x01h"  # :authority
    block += b"\x0f\x10\x10application/grpc"  # content-type
    block += b"\x00\x02te\x08trailers"
    return frame(1, 0x4, stream, block)


async def hang_up(port, sent):
    """Send bytes on a connection of their own; all that came back until its end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(sent)
        await writer.drain()
        async with asyncio.timeout(5):
            return await reader.read(-1)
    except (ConnectionError, TimeoutError):
        return b""
    finally:
        writer.close()


async def test_a_flood_of_pings_harms_nobody(serving, stub, frontend):
    """grpc sends who pings without end away; Envoy and zttp answer, as long as the
    answers are read. When they are not, Envoy hangs up once 1,000 of them wait, and
    zttp reads no more either."""
    pings = b"".join(frame(6, 0, 0, struct.pack(">Q", i)) for i in range(3000))
    back = await hang_up(serving.port, PREFACE + frame(4, 0, 0, b"") + pings)
    assert (b"too_many_pings" in back) == (frontend == "grpcio")
    await assert_serves(stub)


async def test_streams_opened_and_reset_leave_nothing(serving, stub, engine):
    _, writer = await asyncio.open_connection("127.0.0.1", serving.port)
    writer.write(PREFACE + frame(4, 0, 0, b""))
    for number in range(2000):
        stream = 2 * number + 1
        writer.write(headers(stream) + frame(3, 0, stream, struct.pack(">I", 8)))
    with contextlib.suppress(ConnectionError):  # Envoy hangs up after 500
        await writer.drain()
    await assert_serves(stub)
    writer.close()
    assert engine.entered == 1  # the probe


@pytest.mark.parametrize("garbage", [b"GET / HTTP/1.1\r\n\r\n", b"\x00" * 4096])
async def test_what_is_no_http2_harms_nobody(serving, stub, garbage):
    _, writer = await asyncio.open_connection("127.0.0.1", serving.port)
    writer.write(garbage)
    await writer.drain()
    await assert_serves(stub)
    writer.close()


# ---- numbers ----------------------------------------------------------------------


@pytest.mark.stress
@pytest.mark.timeout(120)
async def test_10000_calls_at_once_are_all_answered(serving, engine, frontend):
    """grpc's own limits would drop half of them at random, as CANCELLED. zttp takes 128
    of a connection: the others wait in the client."""
    engine.hold.clear()
    own_connection = [("grpc.use_local_subchannel_pool", 1)]
    connections = 80 if frontend == "zttp" else 4
    channels = [
        grpc.aio.insecure_channel(serving.address, options=own_connection)
        for _ in range(connections)
    ]
    stubs = [
        open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)
        for channel in channels
    ]
    request = predict()
    calls = [
        stubs[number % connections].ModelInfer(request) for number in range(10_000)
    ]
    for call in calls:
        call.add_done_callback(lambda _: engine.look_again())
    ends = asyncio.gather(*(call.code() for call in calls))

    def all_are_in_or_lost():
        lost = engine.entered < 10_000 and sum(call.done() for call in calls)
        return engine.entered + lost == 10_000

    await engine.until(all_are_in_or_lost)
    assert engine.entered == 10_000
    engine.hold.set()
    codes = await ends
    for channel in channels:
        await channel.close()
    assert set(codes) == {grpc.StatusCode.OK}
