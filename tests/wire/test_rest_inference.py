"""REST inference over both front ends: uvicorn's port, and Envoy's."""

import asyncio
import json

import httpx
import numpy as np
import pytest
import torch

from loader.errors import ArtifactRefused, ModelNotFound
from runtime.counts import Counts
from runtime.datatypes import RAW_ONLY, TORCH
from runtime.errors import DeadlinePassed, Draining, NoRoom
from runtime.limits import Options
from runtime.metrics import Metrics
from runtime.rest import application, listening
from runtime.rest_pages import ServerInfo
from tests.fake_engine import linear

MIB = 1 << 20


@pytest.fixture
def options():
    return Options(max_message_bytes=MIB)


@pytest.fixture
async def http(frontend, begin, seam, options):
    """A client of the server that serves `engine`."""
    if frontend == "envoy":
        serving = await begin(seam, options)
        async with httpx.AsyncClient(base_url=f"http://{serving.address}") as client:
            yield client
        return
    app = application(
        seam, Metrics(Counts(1), "1"), ServerInfo("h", "1"), options.max_message_bytes
    )
    async with (
        listening(app, "127.0.0.1", 0) as port,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client,
    ):
        yield client


def asked(rows=1, **more):
    data = [[float(i) for i in range(64)]] * rows
    x = {"name": "x", "datatype": "FP32", "shape": [rows, 64], "data": data}
    return {"inputs": [x], **more}


def binary(said, *raws):
    """A body with bytes behind its JSON, and the headers that say so."""
    head = json.dumps(said).encode()
    headers = {"inference-header-content-length": str(len(head))}
    return {"content": b"".join([head, *raws]), "headers": headers}


async def infer(http, said, model="linear"):
    return await http.post(f"/v2/models/{model}/infer", json=said)


async def test_metadata_is_what_grpc_says(http):
    for path in ("/v2/models/simple", "/v2/models/simple/versions/1"):
        said = (await http.get(path)).json()
        assert said["name"] == "simple"
        assert said["versions"] == ["1"]
        assert said["inputs"][1] == {
            "name": "INPUT1",
            "datatype": "INT32",
            "shape": [-1, 16],
        }
        assert [output["name"] for output in said["outputs"]] == ["OUTPUT0", "OUTPUT1"]


async def test_ready_says_whether_a_request_would_be_tried(http, engine):
    async def ready(path):
        response = await http.get(f"/v2/models/{path}/ready")
        return response.status_code, response.json().get("ready")

    assert await ready("linear") == (200, True)
    assert await ready("linear/versions/1") == (200, True)
    assert await ready("linear/versions/9") == (404, None)
    assert await ready("nobody") == (404, None)


async def test_the_server_says_which_extensions_it_has(http):
    assert (await http.get("/v2")).json()["extensions"] == ["binary_tensor_data"]


async def test_numbers_in_numbers_out(http):
    response = await infer(http, asked(rows=2, id="r-1"))
    assert response.status_code == 200
    said = response.json()
    assert (said["model_name"], said["model_version"]) == ("linear", "1")
    assert said["id"] == "r-1"
    assert said["parameters"]["hotset_temperature"] == "miss"
    (output,) = said["outputs"]
    x = torch.arange(64.0).expand(2, 64)
    assert output["shape"] == [2, 10]
    (want,) = linear().run(x)
    assert output["data"] == want.flatten().tolist()


async def test_data_may_be_flat(http):
    flat, nested = asked(rows=2), asked(rows=2)
    flat["inputs"][0]["data"] = [float(i) for i in range(64)] * 2
    answers = [(await infer(http, said)).json() for said in (nested, flat)]
    assert answers[0]["outputs"] == answers[1]["outputs"]


@pytest.mark.parametrize("datatype", sorted(TORCH))
async def test_every_datatype_in_numbers_and_in_bytes(http, datatype):
    raw = bytes(i % 2 for i in range(8 * TORCH[datatype].itemsize))
    x = {"name": "x", "datatype": datatype, "shape": [8]}
    said = {
        "inputs": [{**x, "parameters": {"binary_data_size": len(raw)}}],
        "parameters": {"binary_data_output": True},
    }
    path = f"/v2/models/identity_{datatype.lower()}/infer"
    response = await http.post(path, **binary(said, raw))
    assert response.status_code == 200, response.text
    head = int(response.headers["inference-header-content-length"])
    (output,) = json.loads(response.content[:head])["outputs"]
    assert output["parameters"]["binary_data_size"] == len(raw)
    assert output["datatype"] == datatype
    assert response.content[head:] == raw
    if datatype in RAW_ONLY:
        return
    # ... as numbers, and back.
    del said["parameters"]
    numbers = (await http.post(path, **binary(said, raw))).json()["outputs"][0]["data"]
    again = {"inputs": [{**x, "data": numbers}], "outputs": [
        {"name": "y", "parameters": {"binary_data": True}}
    ]}  # fmt: skip
    response = await http.post(path, json=again)
    head = int(response.headers["inference-header-content-length"])
    assert response.content[head:] == raw


@pytest.mark.parametrize("datatype", sorted(RAW_ONLY))
async def test_half_floats_may_be_numbers_here(http, datatype):
    x = {"name": "x", "datatype": datatype, "shape": [3], "data": [0.5, 2, -1.0]}
    response = await infer(http, {"inputs": [x]}, f"identity_{datatype.lower()}")
    assert response.json()["outputs"][0]["data"] == [0.5, 2.0, -1.0]


async def test_bytes_and_numbers_may_be_mixed(http):
    row = np.arange(16, dtype=np.int32)
    inputs = [
        {"name": "INPUT0", "datatype": "INT32", "shape": [1, 16],
         "parameters": {"binary_data_size": 64}},
        {"name": "INPUT1", "datatype": "INT32", "shape": [1, 16], "data": [1] * 16},
    ]  # fmt: skip
    said = {"inputs": inputs, "outputs": [
        {"name": "OUTPUT0"}, {"name": "OUTPUT1", "parameters": {"binary_data": True}}
    ]}  # fmt: skip
    response = await http.post("/v2/models/simple/infer", **binary(said, row.tobytes()))
    head = int(response.headers["inference-header-content-length"])
    total, difference = json.loads(response.content[:head])["outputs"]
    assert total["data"] == (row + 1).tolist()
    assert "data" not in difference
    assert response.content[head:] == (row - 1).tobytes()


async def test_a_large_request_takes_the_way_through_a_thread(http):
    x = {"name": "x", "datatype": "INT64", "shape": [50_000], "data": [7] * 50_000}
    response = await infer(http, {"inputs": [x]}, "identity_int64")
    assert response.json()["outputs"][0]["data"] == [7] * 50_000


# ---- refusals ---------------------------------------------------------------------


def broken(**changes):
    said = asked()
    said["inputs"][0] |= changes
    return said


REFUSED = {
    "no JSON": (b"{", "the request is not JSON"),
    "NaN is no JSON": (b'{"inputs": [NaN]}', "the request is not JSON"),
    "nested without end": (b"[" * 100_000, "the request is not JSON"),
    "a list": (b"[]", "the request must be an object"),
    "inputs that are no list": (b'{"inputs": {}}', "'inputs' must be an array"),
    "an input that is no object": (b'{"inputs": [1]}', "each of 'inputs' must be an"),
    "a name that is no text": (broken(name=1), "'name' must be a string"),
    "half a character": (b'{"id": "\\ud800"}', "'id' must be a string"),
    "a shape of floats": (broken(shape=[1.0, 64]), "array of integers"),
    "a shape beyond 64 bits": (broken(shape=[2**70]), "array of integers"),
    "no data": (
        {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 64]}]},
        "unable to find data for input tensor 'x' for model 'linear' in request.",
    ),
    "too little data": (
        broken(data=[1.0]),
        "input byte size mismatch for input 'x' for model 'linear'. "
        "Expected 256, got 4",
    ),
    "ragged data": (broken(data=[[1.0], 2.0]), "nested evenly or flat"),
    "data that is a text": (broken(data="abc"), "nested evenly or flat"),
    "text for a number": (broken(data=["1"] * 64), "has a value that is no FP32"),
    "true for a number": (broken(data=[True] * 64), "has a value that is no FP32"),
    "strings": (broken(datatype="BYTES", data=["a"]), "which is not supported"),
    "a datatype nobody has": (broken(datatype="FP8"), "which is unknown"),
    "the wrong shape": (
        broken(shape=[1, 5], data=[1.0] * 5),
        "unexpected shape for input 'x' for model 'linear'. "
        "Expected [-1,64], got [1,5]",
    ),
    "an output nobody has": (asked(outputs=[{"name": "zz"}]), "zz"),
    "binary_data that is no bool": (
        asked(outputs=[{"name": "y", "parameters": {"binary_data": 1}}]),
        "'binary_data' must be true or false",
    ),
    "bytes that are not there": (
        broken(parameters={"binary_data_size": 256}),
        "has both data and binary_data_size",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_a_request_that_cannot_be_is_refused(http, engine, case):
    said, text = REFUSED[case]
    body = said if isinstance(said, bytes) else json.dumps(said).encode()
    response = await http.post("/v2/models/linear/infer", content=body)
    assert response.status_code == 400
    assert text in response.json()["error"]


async def test_an_integer_that_does_not_fit_is_refused(http):
    for value in (300, -129, 2**80, 1.5):
        x = {"name": "x", "datatype": "INT8", "shape": [1], "data": [value]}
        response = await infer(http, {"inputs": [x]}, "identity_int8")
        assert response.status_code == 400
        assert "INT8" in response.json()["error"]


@pytest.mark.parametrize("length", ["-1", "x", "99999999999", "1e3", "٣"])
async def test_a_head_length_that_is_none_is_refused(http, length):
    response = await http.post(
        "/v2/models/linear/infer",
        content=b"{}",
        headers={"inference-header-content-length": length.encode()},
    )
    assert response.status_code == 400


async def test_bytes_must_be_as_many_as_are_said(http):
    x = {"name": "x", "datatype": "FP32", "shape": [1, 64]}
    for size, sent, text in (
        (256, 255, "is not what follows"),
        (-1, 256, "is not what follows"),
        (256, 260, "4 bytes follow the last input's"),
        (255, 255, "Expected 256, got 255"),
    ):
        said = {"inputs": [{**x, "parameters": {"binary_data_size": size}}]}
        response = await http.post(
            "/v2/models/linear/infer", **binary(said, bytes(sent))
        )
        assert response.status_code == 400
        assert text in response.json()["error"]


@pytest.mark.parametrize(
    ("error", "code", "retry"),
    [
        (ModelNotFound("linear"), 404, None),
        (ArtifactRefused("graph.json: node 3", "no such op"), 422, None),
        (NoRoom("no room", retry_after=1.5), 429, "2"),
        (Draining("going away"), 503, "1"),
        (DeadlinePassed("too late"), 504, None),
        (ValueError("s3://AKIAEXAMPLE:secret@bucket"), 500, None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
async def test_each_error_has_its_code(http, engine, error, code, retry):
    engine.errors["linear"] = error
    response = await infer(http, asked())
    assert response.status_code == code
    assert response.headers.get("retry-after") == retry
    assert "secret" not in response.text


async def test_what_json_cannot_carry_is_said(http):
    raw = np.array([np.nan, 1.0], np.float32).tobytes()
    x = {"name": "x", "datatype": "FP32", "shape": [2]}
    said = {"inputs": [{**x, "parameters": {"binary_data_size": 8}}]}
    path = "/v2/models/identity_fp32/infer"
    response = await http.post(path, **binary(said, raw))
    assert response.status_code == 400
    assert "ask for it as binary data" in response.json()["error"]
    said["parameters"] = {"binary_data_output": True}
    response = await http.post(path, **binary(said, raw))
    assert response.content.endswith(raw)


async def test_a_body_over_the_limit_is_refused(http, engine):
    response = await http.post("/v2/models/linear/infer", content=bytes(2 * MIB))
    assert response.status_code == 413
    assert engine.entered == 0
    assert (await infer(http, asked())).status_code == 200


async def test_other_methods_and_paths_are_refused_as_json(http):
    assert (await http.get("/v2/models/linear/infer")).status_code == 405
    assert (await http.post("/v2/models/linear")).status_code == 405
    response = await http.get("/v2/nothing")
    assert response.status_code == 404
    assert response.json() == {"error": "Not Found"}


async def test_a_bad_name_touches_nothing(http, engine):
    for name in ("%2e%2e", "a%0ab", ".x", "$(id)"):
        response = await http.post(f"/v2/models/{name}/infer", json=asked())
        assert response.status_code in (400, 404)
    assert engine.entered == 0


async def test_who_leaves_is_not_waited_for(http, engine):
    engine.hold.clear()
    call = asyncio.ensure_future(infer(http, asked()))
    await engine.until(lambda: engine.entered == 1)
    call.cancel()
    await engine.until(lambda: engine.cancelled == 1)
    assert engine.entered == 1
