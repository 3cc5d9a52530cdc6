"""The traffic as data, and the process that sends it over a real socket."""

import asyncio
import json
import subprocess
import sys
from collections import Counter

import grpc
import numpy as np
import pytest
import torch

from protos import open_inference_pb2 as wire
from protos import open_inference_pb2_grpc as services
from runtime.demo import traffic
from runtime.demo.stream import ANSWERED, TEMPERATURES, UNKNOWN, Answers, Target, draw
from runtime.engine import Answer
from runtime.wire import encode

IMAGES = np.random.default_rng(1).random((20, 64), dtype=np.float32)
TARGETS = [
    Target("digits-mlp-000", "pixels", (64,)),
    Target("digits-cnn-001", "image", (1, 8, 8)),
    Target("digits-former-002", "rows", (8, 8)),
]


def many_targets(count):
    return [Target(f"m{i:03d}", "pixels", (64,)) for i in range(count)]


class Echo(services.GRPCInferenceServiceServicer):
    """Answers with the first ten pixels; refuses what it is told to refuse."""

    def __init__(self, refused=frozenset(), typed=False, crowd=1):
        self.refused = refused
        self.typed = typed
        self.crowd = asyncio.Barrier(crowd)  # nobody is answered before so many wait
        self.seen = []
        self.now = 0
        self.most = 0

    async def ModelInfer(self, request, context):
        self.now += 1
        self.most = max(self.most, self.now)
        await self.crowd.wait()
        self.now -= 1
        self.seen.append(request)
        if request.id in self.refused:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "no room")
        row = np.frombuffer(request.raw_input_contents[0], np.float32)[:10]
        response = wire.ModelInferResponse(model_name=request.model_name)
        output = response.outputs.add(name="logits", datatype="FP32", shape=[1, 10])
        if self.typed:
            output.contents.fp32_contents.extend(row.tolist())
        else:
            response.raw_output_contents.append(row.tobytes())
        temperature = TEMPERATURES[int(request.id) % 3]
        response.parameters["hotset_temperature"].string_param = temperature
        return response


class listening:
    """The echo on a port of its own."""

    def __init__(self, echo):
        self.echo = echo

    async def __aenter__(self):
        self.server = grpc.aio.server()
        services.add_GRPCInferenceServiceServicer_to_server(self.echo, self.server)
        port = self.server.add_insecure_port("127.0.0.1:0")
        await self.server.start()
        return f"127.0.0.1:{port}"

    async def __aexit__(self, *exc_info):
        await self.server.stop(None)


def test_the_same_seed_draws_the_same_stream():
    one = draw(many_targets(50), IMAGES, 500, seed=3)
    two = draw(many_targets(50), IMAGES, 500, seed=3)
    assert np.array_equal(one.model, two.model)
    assert np.array_equal(one.image, two.image)
    other = draw(many_targets(50), IMAGES, 500, seed=4)
    assert not np.array_equal(one.model, other.model)


def test_popularity_follows_the_law():
    stream = draw(many_targets(200), IMAGES, 50_000, seed=3)
    ranked = [count for _, count in Counter(stream.model.tolist()).most_common()]
    weights = np.arange(1, 201) ** -0.9
    expected = 50_000 * weights / weights.sum()
    assert ranked[0] == pytest.approx(expected[0], rel=0.1)
    assert ranked[9] == pytest.approx(expected[9], rel=0.15)
    assert len(ranked) == 200


def test_hot_models_are_not_simply_the_first():
    stream = draw(many_targets(200), IMAGES, 5_000, seed=3)
    hottest = [model for model, _ in Counter(stream.model.tolist()).most_common(20)]
    assert max(hottest) > 100


def test_a_stream_and_its_answers_survive_their_files(tmp_path):
    stream = draw(TARGETS, IMAGES, 30, seed=3, alone=3)
    stream.write(tmp_path)
    back = traffic.Stream.read(tmp_path)
    assert back.targets == stream.targets
    assert np.array_equal(back.images, stream.images)
    assert np.array_equal(back.model, stream.model)
    assert (len(back), back.alone, back.crowded) == (30, 3, 27)
    answers = Answers.none_yet(30, 10)
    answers.scores[4] = 0.25
    answers.code[4] = ANSWERED
    answers.write(tmp_path)
    found = Answers.read(tmp_path)
    assert np.array_equal(found.scores, answers.scores)
    assert found.code.tolist() == answers.code.tolist()


@pytest.mark.parametrize("typed", [False, True])
async def test_every_answer_lands_at_its_request(typed):
    stream = draw(TARGETS, IMAGES, 60, seed=3)
    echo = Echo(typed=typed, crowd=4)
    async with listening(echo) as target:
        answers = await traffic.send(stream, target, 4, lambda line: None)
    assert (answers.code == ANSWERED).all()
    assert np.array_equal(answers.scores, IMAGES[stream.image][:, :10])
    assert answers.temperature.tolist() == [turn % 3 for turn in range(60)]
    assert (answers.seconds > 0).all()
    assert echo.most == 4
    for request in echo.seen:
        target = stream.targets[stream.model[int(request.id)]]
        assert request.model_name == target.name
        assert request.inputs[0].name == target.input
        assert tuple(request.inputs[0].shape) == (1, *target.shape)


async def test_the_last_requests_are_sent_one_at_a_time():
    stream = draw(TARGETS, IMAGES, 60, seed=3, alone=20)
    echo = Echo()
    crowd = []

    class Watched(Echo):
        async def ModelInfer(self, request, context):
            if int(request.id) < stream.crowded:
                return await echo.ModelInfer(request, context)
            crowd.append(self.now)
            return await super().ModelInfer(request, context)

    watched = Watched()
    async with listening(watched) as target:
        answers = await traffic.send(stream, target, 4, lambda line: None)
    assert (answers.code == ANSWERED).all()
    assert [int(request.id) for request in watched.seen] == list(range(40, 60))
    assert crowd == [0] * 20
    assert (np.diff(answers.at[40:]) > 0).all()
    assert answers.at[40:].min() > answers.at[:40].max()


async def test_a_refused_request_is_told_and_the_rest_goes_on():
    stream = draw(TARGETS, IMAGES, 40, seed=3)
    said = []
    refused = {"3", "5", "8", "13", "21"}
    async with listening(Echo(refused)) as target:
        answers = await traffic.send(stream, target, 2, said.append)
    exhausted = grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
    assert {str(i) for i in np.flatnonzero(answers.code == exhausted)} == refused
    assert int((answers.code == ANSWERED).sum()) == 35
    lines = [json.loads(line) for line in said]
    failures = [line["failure"] for line in lines if "failure" in line]
    assert failures == ["RESOURCE_EXHAUSTED: no room"] * traffic.TOLD_FAILURES
    assert lines[-1]["done"] == 40
    assert lines[-1]["failed"] == 5


async def test_an_answer_of_the_wrong_size_is_no_answer():
    class Short(Echo):
        async def ModelInfer(self, request, context):
            response = await super().ModelInfer(request, context)
            response.raw_output_contents[0] = b"\0" * 8
            return response

    stream = draw(TARGETS, IMAGES, 5, seed=3)
    async with listening(Short()) as target:
        answers = await traffic.send(stream, target, 1, lambda line: None)
    assert not (answers.code == ANSWERED).any()


def test_the_server_calls_the_temperature_what_the_traffic_calls_it():
    # traffic.py has a name of its own, since runtime.wire imports torch
    logits = torch.zeros(1, 10)
    for place, said in enumerate(TEMPERATURES):
        response = encode(Answer("m", "1", [("logits", logits)], said))
        assert traffic.temperature(response) == place


async def test_an_answer_may_keep_its_temperature_to_itself():
    response = wire.ModelInferResponse()
    assert traffic.temperature(response) == UNKNOWN
    response.parameters[traffic.TEMPERATURE].string_param = "lukewarm"
    assert traffic.temperature(response) == UNKNOWN


@pytest.mark.process
async def test_the_process_reads_the_stream_and_writes_the_answers(tmp_path):
    stream = draw(TARGETS, IMAGES, 50, seed=3)
    stream.write(tmp_path)
    async with listening(Echo()) as target:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "runtime.demo.traffic", "--target", target),
            *("--directory", str(tmp_path), "--concurrency", "8"),
            stdout=subprocess.PIPE,
        )
        output, _ = await process.communicate()
    assert process.returncode == 0
    last = json.loads(output.splitlines()[-1])
    assert (last["done"], last["failed"]) == (50, 0)
    assert (Answers.read(tmp_path).code == ANSWERED).all()


def test_the_traffic_process_needs_no_torch():
    code = "import runtime.demo.traffic, sys; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
