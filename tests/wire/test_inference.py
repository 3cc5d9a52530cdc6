"""Every method of the protocol, answered over a socket."""

import numpy as np
import pytest
import torch

from protos import open_inference_pb2 as pb
from runtime.contents import FIELD
from runtime.datatypes import RAW_ONLY, TORCH
from tests.fake_engine import linear


def infer(model, tensors, **more):
    """A raw request from name -> (datatype, numpy array or bytes)."""
    request = pb.ModelInferRequest(model_name=model, **more)
    for name, (datatype, array) in tensors.items():
        request.inputs.add(name=name, datatype=datatype, shape=array.shape)
        request.raw_input_contents.append(array.tobytes())
    return request


async def test_the_server_is_live_ready_and_known(stub):
    assert (await stub.ServerLive(pb.ServerLiveRequest())).live
    assert (await stub.ServerReady(pb.ServerReadyRequest())).ready
    metadata = await stub.ServerMetadata(pb.ServerMetadataRequest())
    assert metadata.name == "hotset"
    assert metadata.version
    assert {"model_repository", "statistics", "model_configuration"} <= set(
        metadata.extensions
    )


async def test_a_raw_request_gets_a_raw_answer(stub):
    x = np.random.default_rng(0).normal(size=(3, 64)).astype(np.float32)
    response = await stub.ModelInfer(infer("linear", {"x": ("FP32", x)}, id="r-1"))
    assert (response.model_name, response.model_version) == ("linear", "1")
    assert response.id == "r-1"
    assert list(response.outputs[0].shape) == [3, 10]
    (want,) = linear().run(torch.from_numpy(x))
    assert response.raw_output_contents[0] == want.numpy().tobytes()


async def test_a_typed_request_gets_a_typed_answer(stub):
    request = pb.ModelInferRequest(model_name="simple")
    for name, value in (("INPUT0", 5), ("INPUT1", 2)):
        tensor = request.inputs.add(name=name, datatype="INT32", shape=[1, 16])
        tensor.contents.int_contents.extend([value] * 16)
    response = await stub.ModelInfer(request)
    total, difference = response.outputs
    assert list(total.contents.int_contents) == [7] * 16
    assert list(difference.contents.int_contents) == [3] * 16
    assert not response.raw_output_contents


@pytest.mark.parametrize("datatype", sorted(TORCH))
async def test_every_datatype_makes_the_round_trip(stub, datatype):
    raw = bytes(i % 2 for i in range(8 * TORCH[datatype].itemsize))
    request = pb.ModelInferRequest(model_name=f"identity_{datatype.lower()}")
    request.inputs.add(name="x", datatype=datatype, shape=[8])
    request.raw_input_contents.append(raw)
    response = await stub.ModelInfer(request)
    assert response.outputs[0].datatype == datatype
    assert response.raw_output_contents[0] == raw
    # ... and back in as typed contents, where the protocol has them.
    request.parameters["binary_data_output"].bool_param = False
    response = await stub.ModelInfer(request)
    if datatype in RAW_ONLY:
        assert response.raw_output_contents[0] == raw
        return
    again = pb.ModelInferRequest(model_name=request.model_name)
    tensor = again.inputs.add(name="x", datatype=datatype, shape=[8])
    tensor.contents.CopyFrom(response.outputs[0].contents)
    assert getattr(tensor.contents, FIELD[datatype])
    again.parameters["binary_data_output"].bool_param = True
    assert (await stub.ModelInfer(again)).raw_output_contents[0] == raw


async def test_only_the_requested_outputs_come(stub, engine):
    row = np.ones((1, 16), np.int32)
    request = infer("simple", {f"INPUT{i}": ("INT32", row) for i in (0, 1)})
    request.outputs.add(name="OUTPUT1")
    response = await stub.ModelInfer(request)
    assert [output.name for output in response.outputs] == ["OUTPUT1"]
    assert engine.requests[-1].outputs == ("OUTPUT1",)


async def test_metadata_and_configuration_agree(stub):
    metadata = await stub.ModelMetadata(pb.ModelMetadataRequest(name="simple"))
    assert list(metadata.versions) == ["1"]
    assert metadata.inputs[1].name == "INPUT1"
    assert metadata.inputs[1].datatype == "INT32"
    assert list(metadata.inputs[1].shape) == [-1, 16]
    assert [output.name for output in metadata.outputs] == ["OUTPUT0", "OUTPUT1"]
    assert not metadata.properties  # another dialect has another type there
    config = (await stub.ModelConfig(pb.ModelConfigRequest(name="simple"))).config
    assert config.max_batch_size == 8
    assert list(config.input[1].dims) == [16]  # the batch is left out
    assert config.input[1].data_type == pb.TYPE_INT32
    assert config.HasField("dynamic_batching")


async def test_a_model_without_batch_keeps_all_its_dims(stub):
    request = pb.ModelConfigRequest(name="identity_bf16")
    config = (await stub.ModelConfig(request)).config
    assert config.max_batch_size == 0
    assert list(config.input[0].dims) == [-1]
    assert config.output[0].data_type == pb.TYPE_BF16
    assert not config.HasField("dynamic_batching")


async def test_a_model_is_ready_when_a_request_would_be_tried(stub, engine):
    async def ready(name, version=""):
        request = pb.ModelReadyRequest(name=name, version=version)
        return (await stub.ModelReady(request)).ready

    assert await ready("linear")
    assert await ready("linear", "1")
    assert not await ready("linear", "2")
    assert not await ready("nobody")
    engine.errors["linear"] = RuntimeError("broken")
    assert not await ready("linear")


async def test_load_index_unload(stub, engine):
    load = pb.RepositoryModelLoadRequest(model_name="linear")
    loaded = await stub.RepositoryModelLoad(load, timeout=10)
    assert (loaded.model_name, loaded.isLoaded) == ("linear", True)
    assert engine.load_deadlines[0] is not None
    engine.errors["broken"] = RuntimeError("why")
    index = await stub.RepositoryIndex(pb.RepositoryIndexRequest())
    assert [(m.name, m.version, m.state, m.reason) for m in index.models] == [
        ("linear", "1", "READY", ""),
        ("broken", "1", "UNAVAILABLE", "why"),
    ]
    index = await stub.RepositoryIndex(pb.RepositoryIndexRequest(ready=True))
    assert [m.name for m in index.models] == ["linear"]
    unload = pb.RepositoryModelUnloadRequest(model_name="linear")
    unload.parameters["unload_dependents"].bool_param = True
    unloaded = await stub.RepositoryModelUnload(unload)
    assert (unloaded.model_name, unloaded.isUnloaded) == ("linear", True)
    assert not engine.resident


async def test_unloading_what_is_not_there_is_fine(stub):
    request = pb.RepositoryModelUnloadRequest(model_name="nobody")
    assert (await stub.RepositoryModelUnload(request)).isUnloaded


async def test_statistics_count_and_say_what_memory_a_model_holds(stub):
    x = np.zeros((1, 64), np.float32)
    for _ in range(3):
        await stub.ModelInfer(infer("linear", {"x": ("FP32", x)}))
    response = await stub.ModelStatistics(pb.ModelStatisticsRequest(name="linear"))
    (stats,) = response.model_stats
    assert (stats.name, stats.version) == ("linear", "1")
    assert (stats.inference_count, stats.execution_count) == (3, 3)
    assert stats.last_inference == 1_700_000_000_500
    assert stats.inference_stats.queue.count == 3
    assert stats.inference_stats.success.ns == 3_000_000
    assert stats.inference_stats.compute_input.count == 3
    assert stats.inference_stats.cache_miss.ns == 250_000_000
    assert [(m.type, m.id, m.byte_size) for m in stats.memory_usage] == [
        ("GPU", 1, 4096),
        ("CPU_PINNED", 0, 512),
    ]
    everyone = await stub.ModelStatistics(pb.ModelStatisticsRequest())
    assert [m.name for m in everyone.model_stats] == ["linear"]


async def test_a_model_in_the_store_that_nobody_used_has_zeros(stub):
    response = await stub.ModelStatistics(pb.ModelStatisticsRequest(name="simple"))
    (stats,) = response.model_stats
    assert (stats.name, stats.version, stats.inference_count) == ("simple", "1", 0)


async def test_a_stream_answers_each_request_and_survives_a_bad_one(stub):
    x = np.zeros((1, 64), np.float32)

    async def requests():
        yield infer("linear", {"x": ("FP32", x)}, id="1")
        yield infer("nobody", {"x": ("FP32", x)}, id="2")
        yield infer("linear", {"x": ("FP32", x)}, id="3")

    answers = [answer async for answer in stub.ModelStreamInfer(requests())]
    assert [answer.infer_response.id for answer in answers] == ["1", "2", "3"]
    assert [answer.error_message for answer in answers] == [
        "",
        "Request for unknown model: 'nobody' is not found",
        "",
    ]
