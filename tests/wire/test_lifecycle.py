"""From listening to stopping: health, reflection, deadlines, cancellation, SIGTERM."""

import asyncio
import os
import signal
import sys

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from protos import open_inference_pb2 as pb
from protos import open_inference_pb2_grpc
from runtime.server import CannotListen, Options
from runtime.status import Code
from tests.fake_engine import FakeEngine
from tests.wire.conftest import ADDRESS, starter

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
OURS = pytest.mark.parametrize("combination", ["grpcio", "zttp"], indirect=True)
"""Those that listen in this process."""
SERVICE = "inference.GRPCInferenceService"


def predict():
    request = pb.ModelInferRequest(model_name="linear", raw_input_contents=[bytes(256)])
    request.inputs.add(name="x", datatype="FP32", shape=[1, 64])
    return request


def health_of(channel):
    return health_pb2_grpc.HealthStub(channel)


# ---- health and reflection --------------------------------------------------------


async def test_health_follows_the_engine(channel, engine, seam, refused):
    health = health_of(channel)
    for ready, want in ((True, SERVING), (False, NOT_SERVING), (True, SERVING)):
        engine.ready = ready
        while seam.ready != ready:  # noqa: ASYNC110 - an engine elsewhere says so soon
            await asyncio.sleep(0)
        for name in ("", SERVICE):
            request = health_pb2.HealthCheckRequest(service=name)
            assert (await health.Check(request)).status == want
    listed = await health.List(health_pb2.HealthListRequest())
    assert {name: said.status for name, said in listed.statuses.items()} == {
        "": SERVING,
        SERVICE: SERVING,
    }
    unknown = health_pb2.HealthCheckRequest(service="nobody")
    assert (await refused(health.Check(unknown))).code() is grpc.StatusCode.NOT_FOUND


async def test_a_watch_sees_each_change_and_is_let_go_at_the_end(
    serving, channel, engine
):
    watch = health_of(channel).Watch(health_pb2.HealthCheckRequest(service=SERVICE))
    assert (await watch.read()).status == SERVING
    engine.ready = False
    assert (await watch.read()).status == NOT_SERVING
    engine.ready = True
    assert (await watch.read()).status == SERVING
    await serving.stop()
    assert (await watch.read()).status == NOT_SERVING
    assert await watch.read() is grpc.aio.EOF


async def test_a_watch_of_an_unknown_service_stays_open(channel):
    watch = health_of(channel).Watch(health_pb2.HealthCheckRequest(service="nobody"))
    assert (await watch.read()).status == SERVICE_UNKNOWN
    assert not watch.done()
    watch.cancel()


async def reflected(channel, **request):
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    request = reflection_pb2.ServerReflectionRequest(**request)
    return await stub.ServerReflectionInfo(iter([request])).read()


async def test_reflection_lists_the_services_and_knows_their_messages(channel):
    response = await reflected(channel, list_services="")
    assert {service.name for service in response.list_services_response.service} == {
        SERVICE,
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    response = await reflected(channel, file_containing_symbol=SERVICE)
    (file, *_) = response.file_descriptor_response.file_descriptor_proto
    assert b"ModelStreamInfer" in file


async def test_reflection_can_be_off(begin, engine):
    async with (
        await begin(engine, Options(reflection=False)) as serving,
        grpc.aio.insecure_channel(serving.address) as channel,
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await reflected(channel, list_services="")
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


# ---- deadlines and cancellation ---------------------------------------------------


async def test_the_engine_learns_the_deadline_on_its_own_clock(stub, engine):
    loop = asyncio.get_running_loop()
    before = loop.time()
    await stub.ModelInfer(predict(), timeout=100)
    # grpc rounds a long timeout up on the wire, to whole seconds here.
    assert before + 90 < engine.requests[-1].deadline < loop.time() + 110


async def test_no_deadline_is_none(stub, engine):
    await stub.ModelInfer(predict())
    assert engine.requests[-1].deadline is None


async def test_a_wait_ends_with_its_deadline(stub, engine, refused):
    engine.hold.clear()
    told = await refused(stub.ModelInfer(predict(), timeout=0.3))
    assert told.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await engine.until(lambda: not engine.waiting)


async def test_a_cancelled_call_is_cancelled_in_the_engine(stub, engine):
    engine.hold.clear()
    call = stub.ModelInfer(predict())
    waiting = asyncio.ensure_future(call.code())
    await engine.until(lambda: engine.entered == 1)
    call.cancel()
    assert await waiting is grpc.StatusCode.CANCELLED
    await engine.until(lambda: engine.cancelled == 1)


async def test_a_lost_connection_cancels_its_calls(serving, engine):
    engine.hold.clear()
    channel = grpc.aio.insecure_channel(serving.address)
    stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)
    call = asyncio.ensure_future(stub.ModelInfer(predict()).code())
    await engine.until(lambda: engine.entered == 1)
    await channel.close()
    await engine.until(lambda: engine.cancelled == 1)
    assert await call is grpc.StatusCode.CANCELLED


async def test_who_asks_is_told_how_each_call_ended(begin, engine):
    method = f"/{SERVICE}/ModelInfer"
    async with (
        await begin(engine) as serving,
        grpc.aio.insecure_channel(serving.address) as channel,
    ):
        stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)
        await stub.ModelInfer(predict())
        assert serving.ends == [(method, Code.OK)]
        engine.errors["linear"] = ValueError()
        await stub.ModelInfer(predict()).code()
        assert serving.ends[1:] == [(method, Code.INTERNAL)]
        engine.errors.clear()
        engine.hold.clear()
        call = stub.ModelInfer(predict())
        waiting = asyncio.ensure_future(call.code())
        await engine.until(lambda: engine.entered == 3)
        call.cancel()
        await waiting
        await engine.until(lambda: len(serving.ends) == 3)
        assert engine.cancelled == 1
        assert serving.ends[2:] == [(method, Code.CANCELLED)]


# ---- listening and stopping -------------------------------------------------------


@OURS
async def test_a_taken_port_is_an_error_with_a_reason(serving, frontend):
    with pytest.raises(CannotListen, match=r"cannot listen on 127\.0\.0\.1:\d+"):
        await starter(frontend)(FakeEngine(), address=f"127.0.0.1:{serving.port}")


@OURS
async def test_a_port_may_be_shared_on_purpose(engine, frontend):
    options, start = Options(reuse_port=True), starter(frontend)
    async with await start(engine, address=ADDRESS, options=options) as first:
        address = f"127.0.0.1:{first.port}"
        async with await start(engine, address=address, options=options) as second:
            assert second.port == first.port


@OURS
async def test_a_unix_socket_serves(engine, tmp_path, frontend):
    address, start = f"unix:{tmp_path}/hotset.sock", starter(frontend)
    async with (
        await start(engine, address=address) as serving,
        grpc.aio.insecure_channel(serving.address) as channel,
    ):
        stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)
        assert (await stub.ModelInfer(predict())).model_name == "linear"


async def test_a_stop_lets_running_calls_finish_and_refuses_new_ones(
    serving, stub, channel, engine, refused
):
    engine.hold.clear()
    running = asyncio.ensure_future(stub.ModelInfer(predict()))
    await engine.until(lambda: engine.entered == 1)
    stopping = asyncio.ensure_future(serving.stop(grace=10))
    told = None
    while told is None:  # until the drain has begun
        call = stub.ServerReady(pb.ServerReadyRequest())
        if not (await call).ready:
            told = await refused(stub.ModelInfer(predict()))
    assert told.code() is grpc.StatusCode.UNAVAILABLE
    check = await health_of(channel).Check(health_pb2.HealthCheckRequest())
    assert check.status == NOT_SERVING
    assert not stopping.done()
    engine.hold.set()
    assert (await running).model_name == "linear"
    await stopping
    assert engine.drained
    told = await refused(stub.ServerLive(pb.ServerLiveRequest()))
    assert told.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_stop_cuts_what_outlives_the_grace(serving, stub, engine, refused):
    engine.hold.clear()
    running = asyncio.ensure_future(stub.ModelInfer(predict()).code())
    await engine.until(lambda: engine.entered == 1)
    await serving.stop(grace=0.1)
    assert await running in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
    assert engine.cancelled == 1
    assert engine.drained


async def test_an_idle_stream_does_not_hold_up_a_stop(serving, stub, engine):
    call = stub.ModelStreamInfer()
    await call.write(predict())
    assert (await call.read()).infer_response.model_name == "linear"
    await asyncio.wait_for(serving.stop(grace=60), 10)
    assert engine.drained


async def test_stopping_twice_is_stopping_once(serving, engine):
    await asyncio.gather(serving.stop(), serving.stop())
    await serving.stop()
    assert engine.drained


@OURS
@pytest.mark.parametrize(
    ("number", "final"),
    [
        (signal.SIGTERM, signal.SIG_DFL),
        (signal.SIGINT, signal.default_int_handler),
    ],
)
async def test_the_first_signal_ends_the_wait_and_the_next_the_process(
    serving, number, final
):
    waiting = asyncio.ensure_future(serving.told_to_stop())
    await asyncio.sleep(0)  # one turn of the loop installs the handler
    os.kill(os.getpid(), number)
    await waiting
    assert signal.getsignal(number) is final


PROGRAM = """
import asyncio, sys, structlog
from runtime.server import start
from tests.fake_engine import FakeEngine

async def main():
    engine = FakeEngine()
    async with await start(engine, address="127.0.0.1:0") as serving:
        print(serving.address, flush=True)
        await serving.told_to_stop()
    assert engine.drained
    print("drained", flush=True)

structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
asyncio.run(main())
"""


@pytest.mark.process
async def test_a_process_told_to_stop_drains_and_exits_with_0():
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM, stdout=asyncio.subprocess.PIPE
    )
    try:
        address = (await process.stdout.readuntil()).decode().strip()
        async with grpc.aio.insecure_channel(address) as channel:
            stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)
            assert (await stub.ModelInfer(predict())).model_name == "linear"
            process.send_signal(signal.SIGTERM)
            rest = await process.stdout.read()
            assert await process.wait() == 0
        assert b"drained" in rest
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
