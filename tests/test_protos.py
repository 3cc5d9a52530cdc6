import subprocess
import sys
from pathlib import Path

import pytest

from protos import open_inference_pb2 as pb

ROOT = Path(__file__).parent.parent


def test_the_generated_code_is_what_the_text_says(tmp_path):
    outs = [
        f"--{kind}={tmp_path}" for kind in ("python_out", "pyi_out", "grpc_python_out")
    ]
    protos = [path.relative_to(ROOT) for path in ROOT.glob("protos/*.proto")]
    assert protos
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", "-I", ".", *outs, *protos],
        cwd=ROOT,
        check=True,
    )
    made = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.py*"))
    assert len(made) == 3 * len(protos)
    for path in made:
        assert (tmp_path / path).read_text() == (ROOT / path).read_text(), path


# What clients out there have compiled in: name -> number.
NUMBERS = {
    "ServerMetadataResponse": "name=1 version=2 extensions=3",
    "ModelReadyRequest": "name=1 version=2",
    "ModelMetadataResponse": (
        "name=1 versions=2 platform=3 inputs=4 outputs=5 properties=6"
    ),
    "ModelMetadataResponse.TensorMetadata": "name=1 datatype=2 shape=3",
    "ModelInferRequest": (
        "model_name=1 model_version=2 id=3 parameters=4 inputs=5 outputs=6 "
        "raw_input_contents=7"
    ),
    "ModelInferRequest.InferInputTensor": (
        "name=1 datatype=2 shape=3 parameters=4 contents=5"
    ),
    "ModelInferRequest.InferRequestedOutputTensor": "name=1 parameters=2",
    "ModelInferResponse": (
        "model_name=1 model_version=2 id=3 parameters=4 outputs=5 raw_output_contents=6"
    ),
    "ModelInferResponse.InferOutputTensor": (
        "name=1 datatype=2 shape=3 parameters=4 contents=5"
    ),
    "InferParameter": (
        "bool_param=1 int64_param=2 string_param=3 double_param=4 uint64_param=5"
    ),
    "InferTensorContents": (
        "bool_contents=1 int_contents=2 int64_contents=3 uint_contents=4 "
        "uint64_contents=5 fp32_contents=6 fp64_contents=7 bytes_contents=8"
    ),
    "ModelStreamInferResponse": "error_message=1 infer_response=2",
    "RepositoryIndexRequest": "repository_name=1 ready=2",
    "RepositoryIndexResponse.ModelIndex": "name=1 version=2 state=3 reason=4",
    "RepositoryModelLoadRequest": "repository_name=1 model_name=2 parameters=3",
    "RepositoryModelLoadResponse": "model_name=1 isLoaded=2",
    "RepositoryModelUnloadRequest": "repository_name=1 model_name=2 parameters=3",
    "RepositoryModelUnloadResponse": "model_name=1 isUnloaded=2",
    "ModelRepositoryParameter": (
        "bool_param=1 int64_param=2 string_param=3 bytes_param=4"
    ),
    "ModelStatistics": (
        "name=1 version=2 last_inference=3 inference_count=4 execution_count=5 "
        "inference_stats=6 batch_stats=7 memory_usage=8 response_stats=9"
    ),
    "InferStatistics": (
        "success=1 fail=2 queue=3 compute_input=4 compute_infer=5 compute_output=6 "
        "cache_hit=7 cache_miss=8"
    ),
    "MemoryUsage": "type=1 id=2 byte_size=3",
    "ModelConfig": (
        "name=1 platform=2 max_batch_size=4 input=5 output=6 metric_tags=10 "
        "dynamic_batching=11 parameters=14 backend=17 model_transaction_policy=19 "
        "runtime=25"
    ),
    "ModelInput": "name=1 data_type=2 format=3 dims=4 optional=8",
}


@pytest.mark.parametrize("name", NUMBERS)
def test_field_numbers_are_those_of_everybody_else(name):
    descriptor = pb.DESCRIPTOR
    for part in name.split("."):
        nested = getattr(descriptor, "nested_types_by_name", None)
        types = descriptor.message_types_by_name if nested is None else nested
        descriptor = types[part]
    assert descriptor.full_name == f"inference.{name}"
    numbers = {field.name: field.number for field in descriptor.fields}
    want = (pair.split("=") for pair in NUMBERS[name].split())
    assert numbers == {field: int(number) for field, number in want}
