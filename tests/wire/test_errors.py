"""What a caller is told: every row of the table over a socket, and what it never is."""

import asyncio
import random
import re
import string

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from loader.errors import (
    ArtifactRefused,
    DeviceFull,
    DeviceLost,
    ModelNotFound,
    StoreDenied,
    StoreUnreachable,
)
from protos import open_inference_pb2 as pb
from runtime.border import ErrorBorder
from runtime.errors import (
    BackingOff,
    BadRequest,
    DeadlinePassed,
    Draining,
    NoRoom,
    QueueFull,
    TooLarge,
)
from runtime.methods import Method

SERVICE = "/inference.GRPCInferenceService"


def predict(model="linear", shape=(1, 64), raw=bytes(256), datatype="FP32", name="x"):
    request = pb.ModelInferRequest(model_name=model, raw_input_contents=[raw])
    request.inputs.add(name=name, datatype=datatype, shape=shape)
    return request


def retry_delay(error):
    """Seconds of the RetryInfo, as any client of grpc-status reads it."""
    status = rpc_status.from_call(error)
    if status is None:
        return None
    assert status.message == error.details()
    hint = error_details_pb2.RetryInfo()
    assert status.details[0].Unpack(hint)
    return hint.retry_delay.ToTimedelta().total_seconds()


@pytest.mark.parametrize(
    ("error", "code", "retry"),
    [
        (ModelNotFound("linear"), "NOT_FOUND", None),
        (BadRequest("malformed"), "INVALID_ARGUMENT", None),
        (
            ArtifactRefused("graph.json: node 3", "no such op"),
            "FAILED_PRECONDITION",
            None,
        ),
        (TooLarge("larger than the budget"), "FAILED_PRECONDITION", None),
        (NoRoom("no room", retry_after=1.5), "RESOURCE_EXHAUSTED", 1.5),
        (QueueFull("too many", retry_after=0.25), "RESOURCE_EXHAUSTED", 0.25),
        (DeviceFull("no room"), "RESOURCE_EXHAUSTED", 1.0),
        (StoreUnreachable("the store is away"), "UNAVAILABLE", 2.0),
        (StoreDenied("the store says no"), "UNAVAILABLE", 30.0),
        (DeviceLost("the device is gone"), "UNAVAILABLE", 60.0),
        (BackingOff("not yet", retry_after=4), "UNAVAILABLE", 4.0),
        (Draining("going away"), "UNAVAILABLE", 1.0),
        (DeadlinePassed("too late"), "DEADLINE_EXCEEDED", None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
async def test_each_row_of_the_table(stub, engine, refused, error, code, retry):
    engine.errors["linear"] = error
    told = await refused(stub.ModelInfer(predict()))
    assert told.code() is grpc.StatusCode[code]
    assert told.details() == str(error)
    assert retry_delay(told) == retry


async def test_anything_else_is_internal_with_an_id_only(stub, engine, refused):
    engine.errors["linear"] = ValueError("s3://AKIAEXAMPLE:secret@bucket/x")
    told = await refused(stub.ModelInfer(predict()))
    assert told.code() is grpc.StatusCode.INTERNAL
    assert re.fullmatch(r"internal error, id [0-9a-f]{16}", told.details())
    assert retry_delay(told) is None


GOLDEN = [
    (predict("m"), "NOT_FOUND", "Request for unknown model: 'm' is not found"),
    (
        predict(shape=(1, 5), raw=bytes(20)),
        "INVALID_ARGUMENT",
        "unexpected shape for input 'x' for model 'linear'. "
        "Expected [-1,64], got [1,5]",
    ),
    (
        predict(shape=(1, 4), raw=bytes(8)),
        "INVALID_ARGUMENT",
        "input byte size mismatch for input 'x' for model 'linear'. Expected 16, got 8 "
        "(FP32[1,4], the shape that the request gives, takes 16 bytes)",
    ),
    (
        predict(datatype="INT32"),
        "INVALID_ARGUMENT",
        "inference input 'x' data-type is 'INT32', but model 'linear' expects 'FP32'",
    ),
    (
        predict(shape=(9, 64), raw=bytes(9 * 256)),
        "INVALID_ARGUMENT",
        "inference request batch-size must be <= 8 for 'linear'",
    ),
    (
        pb.ModelInferRequest(model_name="linear"),
        "INVALID_ARGUMENT",
        "expected 1 inputs but got 0 inputs for model 'linear'",
    ),
    (
        predict(name="zz"),
        "INVALID_ARGUMENT",
        "unexpected inference input 'zz' for model 'linear', "
        "missing required input 'x'",
    ),
]


@pytest.mark.parametrize(("request_", "code", "text"), GOLDEN)
async def test_the_texts_that_clients_match_on(stub, refused, request_, code, text):
    told = await refused(stub.ModelInfer(request_))
    assert told.code() is grpc.StatusCode[code]
    assert told.details() == text


async def test_an_unknown_version_is_not_found(stub, refused):
    request = predict()
    request.model_version = "99"
    told = await refused(stub.ModelInfer(request))
    assert told.code() is grpc.StatusCode.NOT_FOUND
    assert "version 99 is not found" in told.details()


@pytest.mark.parametrize("version", ["latest", "1.0", "-1", "01"])
async def test_a_version_that_is_no_number_is_invalid(stub, refused, version):
    for call in (
        stub.ModelReady(pb.ModelReadyRequest(name="linear", version=version)),
        stub.ModelMetadata(pb.ModelMetadataRequest(name="linear", version=version)),
        stub.ModelConfig(pb.ModelConfigRequest(name="linear", version=version)),
        stub.ModelStatistics(pb.ModelStatisticsRequest(name="linear", version=version)),
    ):
        told = await refused(call)
        assert told.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_bad_name_touches_nothing(stub, engine, refused):
    calls = [
        lambda name: stub.ModelInfer(pb.ModelInferRequest(model_name=name)),
        lambda name: stub.ModelReady(pb.ModelReadyRequest(name=name)),
        lambda name: stub.ModelMetadata(pb.ModelMetadataRequest(name=name)),
        lambda name: stub.ModelConfig(pb.ModelConfigRequest(name=name)),
        lambda name: stub.RepositoryModelLoad(
            pb.RepositoryModelLoadRequest(model_name=name)
        ),
        lambda name: stub.RepositoryModelUnload(
            pb.RepositoryModelUnloadRequest(model_name=name)
        ),
    ]
    for name in ("../../etc/passwd", "a\nb", "a\x00", "$(id)", "%2e%2e", ".x", "é"):
        for call in calls:
            told = await refused(call(name))
            assert told.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert name not in told.details()
    assert engine.entered == 0
    assert not engine.load_deadlines


async def test_a_load_that_fails_says_so_first(stub, engine, refused):
    request = pb.RepositoryModelLoadRequest(model_name="m")
    told = await refused(stub.RepositoryModelLoad(request))
    assert told.code() is grpc.StatusCode.NOT_FOUND
    assert told.details() == (
        "failed to load 'm', Request for unknown model: 'm' is not found"
    )
    shared = ArtifactRefused("graph.json: node 3", "no such op")
    engine.errors["linear"] = shared
    request = pb.RepositoryModelLoadRequest(model_name="linear")
    told = await refused(stub.RepositoryModelLoad(request))
    assert told.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert told.details() == ("failed to load 'linear', graph.json: node 3: no such op")
    assert str(shared) == "graph.json: node 3: no such op"  # others wait for it too


async def test_what_load_and_unload_cannot_do_is_refused(stub, refused):
    load = pb.RepositoryModelLoadRequest(model_name="linear")
    load.parameters["config"].string_param = "{}"
    told = await refused(stub.RepositoryModelLoad(load))
    assert told.details() == "load parameter 'config' is not supported"
    unload = pb.RepositoryModelUnloadRequest(model_name="linear")
    unload.parameters["force"].bool_param = True
    told = await refused(stub.RepositoryModelUnload(unload))
    assert told.details() == "unload parameter 'force' is not supported"
    elsewhere = pb.RepositoryModelLoadRequest(model_name="a", repository_name="b")
    told = await refused(stub.RepositoryModelLoad(elsewhere))
    assert told.details() == "'repository_name' specification is not supported"
    index = pb.RepositoryIndexRequest(repository_name="b")
    told = await refused(stub.RepositoryIndex(index))
    assert told.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_metadata_of_an_unknown_model_is_not_found(stub, refused):
    for call in (
        stub.ModelMetadata(pb.ModelMetadataRequest(name="m")),
        stub.ModelConfig(pb.ModelConfigRequest(name="m")),
        stub.ModelStatistics(pb.ModelStatisticsRequest(name="m")),
    ):
        told = await refused(call)
        assert told.code() is grpc.StatusCode.NOT_FOUND
        assert told.details() == "Request for unknown model: 'm' is not found"


async def test_a_long_text_with_control_characters_is_cut_and_cleaned(
    stub, engine, refused
):
    engine.errors["linear"] = BadRequest("a\n\x1b[31mb\x00" + "é" * 40_000)
    told = await refused(stub.ModelInfer(predict()))
    assert told.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert len(told.details().encode()) <= 1024
    assert told.details().isprintable()


async def test_bytes_that_are_no_message_are_the_callers_fault(channel, refused):
    for method in ("ModelInfer", "ModelReady", "RepositoryModelLoad"):
        call = channel.unary_unary(f"{SERVICE}/{method}")
        told = await refused(call(b"\xff\xff\xff\xff"))
        assert told.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert told.details() == "the request is not a message of this method"


async def test_bytes_that_are_no_message_end_a_stream(channel):
    call = channel.stream_stream(f"{SERVICE}/ModelStreamInfer")(iter([b"\xff\xff"]))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in call:
            pass
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_an_unknown_method_is_unimplemented(channel, refused):
    call = channel.unary_unary(f"{SERVICE}/CudaSharedMemoryStatus")
    told = await refused(call(b""))
    assert told.code() is grpc.StatusCode.UNIMPLEMENTED


# ---- 500 failing requests ---------------------------------------------------------

LEAKS = re.compile(
    r"""
      (?<![\w.'])/(?:usr|home|root|work|tmp|etc|opt|var|proc)\b   # a path of the host
    | \b[A-Za-z]*(?:Error|Exception)\b                            # a class name
    | Traceback | \bline\ \d+ | \.py\b | <class | 0x[0-9a-f]{6,}  # python showing
    | \w+://                                                      # a URL
    | AKIA | secret | password | token | SECRET                   # a credential
    | 127\.0\.0\.1 | localhost                                    # an address
    """,
    re.VERBOSE,
)

CAUSES = [
    ValueError("s3://AKIAEXAMPLE:secret@bucket/weights"),
    KeyError("/etc/passwd"),
    FileNotFoundError(2, "No such file", "/root/.aws/credentials"),
    RuntimeError("CUDA error at 0x7ffdeadbeef in /usr/lib/x.py line 3"),
    ConnectionError("http://127.0.0.1:9000 password=hunter2"),
    AssertionError("Traceback (most recent call last)"),
    TimeoutError("token expired"),
    MemoryError(),
    StopIteration("SECRET"),
]


def broken(rng):
    """One request that must fail, of some forty kinds."""
    junk = "".join(rng.choices(string.printable, k=rng.randrange(1, 20)))
    kinds = [
        lambda: predict(model=rng.choice(["nobody", "x" * 254, "", "..", junk])),
        lambda: predict(name=rng.choice(["y", "X", "a\nb", "", "\x1b[0m"])),
        lambda: predict(datatype=rng.choice(["", "BYTES", "FP8", "fp32", "INT64"])),
        lambda: predict(raw=rng.randbytes(rng.choice([0, 1, 255, 257, 4096]))),
        lambda: predict(
            shape=[rng.choice([-1, 0, 2**62, 7]) for _ in range(rng.randrange(1, 30))]
        ),
        lambda: predict(shape=(rng.randrange(9, 99), 64)),
        lambda: predict(model="embedding"),
        lambda: predict(model="embedding", datatype="INT64", shape=(1, 32), name="ids",
                        raw=b"\xff" * 256),
        lambda: predict(model="simple"),
        lambda: pb.ModelInferRequest(model_name="linear"),
        lambda: pb.ModelInferRequest(model_name="linear", model_version="nine"),
        lambda: pb.ModelInferRequest(model_name="linear", raw_input_contents=[b"x"]),
        lambda: predict(model=f"cause{rng.randrange(len(CAUSES))}"),
    ]  # fmt: skip
    request = rng.choice(kinds)()
    if rng.random() < 0.2:
        request.model_version = rng.choice(["2", "x", "-1"])
    if rng.random() < 0.2:
        request.parameters["binary_data_output"].string_param = "x"
    if rng.random() < 0.2:
        for _ in range(2):
            request.outputs.add(name="y")
    return request


async def test_500_failing_requests_tell_nothing_about_us(stub, engine, refused):
    for number, cause in enumerate(CAUSES):
        engine.errors[f"cause{number}"] = cause
    rng = random.Random(20261121)
    codes = set()
    for _ in range(500):
        told = await refused(stub.ModelInfer(broken(rng)))
        codes.add(told.code().name)
        assert not LEAKS.search(told.details()), told.details()
        assert told.details().isprintable()
        assert told.details()
    assert codes == {"INVALID_ARGUMENT", "NOT_FOUND", "INTERNAL"}


@pytest.mark.parametrize("cause", CAUSES, ids=lambda cause: type(cause).__name__)
def test_the_oracle_would_see_each_cause(cause):
    assert LEAKS.search(f"{cause!r}")


@pytest.mark.parametrize("combination", ["grpcio"], indirect=True)  # looks into it
async def test_an_error_that_is_remembered_remembers_no_call(stub, engine, refused):
    """Unknown names and failed loads are raised again and again from memory: with the
    last call's frames they would hold its message, which may be 64 MiB."""
    cause = ValueError("deep")
    kept = StoreUnreachable("the model store could not be read")
    kept.__cause__ = cause
    engine.errors["linear"] = kept
    for _ in range(2):
        told = await refused(stub.ModelInfer(predict()))
        assert told.code() is grpc.StatusCode.UNAVAILABLE
        assert kept.__traceback__ is None
    await refused(
        stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="linear"))
    )
    assert kept.__traceback__ is None


async def test_whom_nobody_can_tell_any_more_is_no_error_of_ours():
    """grpc finds out in the very moment we answer; its error is not about us."""

    class Gone:
        async def abort(self, code, text, trailing):
            raise grpc._cython.cygrpc.ExecuteBatchError("the call is over")

    async def late(request, call):
        raise DeadlinePassed("the deadline passed while the request waited")

    method = Method(
        "B", pb.ServerLiveRequest, pb.ServerLiveResponse, late, False, False
    )
    ended = []
    border = ErrorBorder(lambda method, code: ended.append(code.name))
    handler = border.handler("a", method)
    with pytest.raises(asyncio.CancelledError):
        await handler.unary_unary(b"", Gone())
    assert ended == ["DEADLINE_EXCEEDED"]
