"""Clients of other dialects, byte by byte.

Their generated code defines the same package and cannot be imported beside ours, so
their messages are built here by hand, in a descriptor pool of their own.
"""

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from protos import open_inference_pb2 as pb

SERVICE = "/inference.GRPCInferenceService"
STRING, BOOL, INT64, BYTES, MESSAGE = 9, 8, 3, 12, 11
ONE, MANY = 1, 3


def message(file, name, *fields):
    """Add `name` to a file; fields are (name, number, type, label or type name)."""
    added = file.message_type.add(name=name)
    for field, number, kind, more in fields:
        if isinstance(more, str):
            added.field.add(
                name=field, number=number, type=kind, label=MANY, type_name=more
            )
        else:
            added.field.add(name=field, number=number, type=kind, label=more)


@pytest.fixture(scope="module")
def kserve():
    """The messages of KServe's Python SDK that differ or matter, by name."""
    file = descriptor_pb2.FileDescriptorProto(
        name="grpc_predict_v2.proto", package="inference", syntax="proto3"
    )
    message(file, "RepositoryModelLoadRequest", ("model_name", 1, STRING, ONE))
    message(
        file,
        "RepositoryModelLoadResponse",
        ("model_name", 1, STRING, ONE),
        ("isLoaded", 2, BOOL, ONE),
    )
    message(file, "RepositoryModelUnloadRequest", ("model_name", 1, STRING, ONE))
    message(
        file,
        "RepositoryModelUnloadResponse",
        ("model_name", 1, STRING, ONE),
        ("isUnloaded", 2, BOOL, ONE),
    )
    message(
        file,
        "Tensor",
        ("name", 1, STRING, ONE),
        ("datatype", 2, STRING, ONE),
        ("shape", 3, INT64, MANY),
    )
    message(
        file,
        "ModelInferRequest",
        ("model_name", 1, STRING, ONE),
        ("model_version", 2, STRING, ONE),
        ("id", 3, STRING, ONE),
        ("inputs", 5, MESSAGE, ".inference.Tensor"),
        ("raw_input_contents", 7, BYTES, MANY),
    )
    message(
        file,
        "ModelInferResponse",
        ("model_name", 1, STRING, ONE),
        ("model_version", 2, STRING, ONE),
        ("id", 3, STRING, ONE),
        ("outputs", 5, MESSAGE, ".inference.Tensor"),
        ("raw_output_contents", 6, BYTES, MANY),
    )
    message(file, "Empty")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return lambda name: message_factory.GetMessageClass(
        pool.FindMessageTypeByName(f"inference.{name}")
    )


def method(channel, kserve, name, request, response):
    return channel.unary_unary(
        f"{SERVICE}/{name}",
        request_serializer=kserve(request).SerializeToString,
        response_deserializer=kserve(response).FromString,
    )


async def test_kserve_loads_and_unloads_by_its_own_field(channel, engine, kserve):
    load = method(
        channel,
        kserve,
        "RepositoryModelLoad",
        "RepositoryModelLoadRequest",
        "RepositoryModelLoadResponse",
    )
    answer = await load(kserve("RepositoryModelLoadRequest")(model_name="linear"))
    assert (answer.model_name, answer.isLoaded) == ("linear", True)
    assert engine.resident == {"linear": "1"}
    unload = method(
        channel,
        kserve,
        "RepositoryModelUnload",
        "RepositoryModelUnloadRequest",
        "RepositoryModelUnloadResponse",
    )
    answer = await unload(kserve("RepositoryModelUnloadRequest")(model_name="linear"))
    assert (answer.model_name, answer.isUnloaded) == ("linear", True)
    assert not engine.resident


async def test_a_failed_load_satisfies_both_camps(channel, kserve, refused):
    load = method(
        channel,
        kserve,
        "RepositoryModelLoad",
        "RepositoryModelLoadRequest",
        "RepositoryModelLoadResponse",
    )
    told = await refused(load(kserve("RepositoryModelLoadRequest")(model_name="m")))
    assert told.code() is grpc.StatusCode.NOT_FOUND  # KServe's and MLServer's code
    assert told.details().startswith("failed to load 'm',")  # Triton's words


async def test_triton_reads_our_answer_as_the_empty_one(channel, kserve):
    load = channel.unary_unary(
        f"{SERVICE}/RepositoryModelLoad",
        request_serializer=pb.RepositoryModelLoadRequest.SerializeToString,
        response_deserializer=kserve("Empty").FromString,
    )
    answer = await load(pb.RepositoryModelLoadRequest(model_name="linear"))
    assert answer.ListFields() == []  # what it does not know it passes over


async def test_a_request_of_another_dialect_is_answered(channel, kserve):
    infer = method(
        channel, kserve, "ModelInfer", "ModelInferRequest", "ModelInferResponse"
    )
    request = kserve("ModelInferRequest")(
        model_name="linear", id="7", raw_input_contents=[bytes(256)]
    )
    request.inputs.add(name="x", datatype="FP32", shape=[1, 64])
    answer = await infer(request)
    assert (answer.model_name, answer.model_version, answer.id) == ("linear", "1", "7")
    assert list(answer.outputs[0].shape) == [1, 10]
    assert len(answer.raw_output_contents[0]) == 40


async def test_metadata_leaves_the_disputed_field_empty(channel):
    call = channel.unary_unary(f"{SERVICE}/ModelMetadata")
    raw = await call(pb.ModelMetadataRequest(name="linear").SerializeToString())
    fields = {
        field.number
        for field, _ in pb.ModelMetadataResponse.FromString(raw).ListFields()
    }
    assert fields == {1, 2, 3, 4, 5}
