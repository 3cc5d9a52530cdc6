"""The traffic process: sends a prepared stream and writes down what comes back.

Owns: the requests, their concurrency and their clock. Must not: judge an answer, or
know weights, orders or labels; it could not cheat if it wanted to.

    python -m runtime.demo.traffic --directory DIR --target HOST:PORT --concurrency N

Reads DIR/targets.json and DIR/stream.npz, writes DIR/answers.npz, and says how far it
is as JSON lines on standard output: {"done": 512, "failed": 0}.
"""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np

from protos import open_inference_pb2 as wire
from protos.open_inference_pb2_grpc import GRPCInferenceServiceStub
from runtime.demo.stream import (
    ANSWERED,
    MALFORMED,
    TEMPERATURES,
    UNKNOWN,
    Answers,
    Floats,
    Stream,
)

PATIENCE_S = 30.0
"""A request's deadline: a demo that waits longer has failed."""

TELL_EVERY_S = 0.2

TOLD_FAILURES = 3
"""So many failed requests are told in full; the rest are only counted."""

TEMPERATURE = "hotset_temperature"

OPTIONS = (("grpc.enable_http_proxy", 0),)


@dataclass(slots=True)
class Tally:
    """How far we are, told in lines."""

    say: Callable[[str], object]
    began: float
    done: int = 0
    failed: int = 0
    _told_at: float = 0.0

    def answered(self, now: float) -> None:
        """One more request has its answer."""
        self.done += 1
        if now - self._told_at >= TELL_EVERY_S:
            self.tell(now)

    def refused(self, code: str, details: str) -> None:
        """One more request has failed."""
        self.failed += 1
        if self.failed <= TOLD_FAILURES:
            self.say(json.dumps({"failure": f"{code}: {details}"}))

    def tell(self, now: float) -> None:
        """Say where we are, whether or not it is time."""
        self._told_at = now
        self.say(json.dumps({"done": self.done, "failed": self.failed}))


@dataclass(frozen=True, slots=True)
class Sender:
    """Sends the requests of a stream and fills in the answers."""

    stream: Stream
    answers: Answers
    tally: Tally
    stub: GRPCInferenceServiceStub

    async def send(self, turns: Iterable[int], concurrency: int) -> None:
        """These requests, so many at a time; returns when all have their answers."""
        left = iter(turns)
        async with asyncio.TaskGroup() as workers:
            for _ in range(concurrency):
                workers.create_task(self._work(left))

    async def _work(self, turns: Iterator[int]) -> None:
        for turn in turns:
            await self._ask(turn)

    async def _ask(self, turn: int) -> None:
        request = ask(self.stream, turn)
        asked = time.perf_counter()
        try:
            response = await self.stub.ModelInfer(request, timeout=PATIENCE_S)
        except grpc.aio.AioRpcError as error:
            code: int = error.code().value[0]
            self.answers.code[turn] = code
            self.tally.refused(error.code().name, error.details() or "")
        else:
            self._keep(turn, response)
        now = time.perf_counter()
        self.answers.seconds[turn] = now - asked
        self.answers.at[turn] = now - self.tally.began
        self.tally.answered(now)

    def _keep(self, turn: int, response: wire.ModelInferResponse) -> None:
        row = scores(response)
        if row.size != self.answers.scores.shape[1]:
            self.answers.code[turn] = MALFORMED
            self.tally.refused("malformed answer", f"{row.size} scores")
            return
        self.answers.code[turn] = ANSWERED
        self.answers.scores[turn] = row
        self.answers.temperature[turn] = temperature(response)


def ask(stream: Stream, turn: int) -> wire.ModelInferRequest:
    """The request of that turn: one image, one row."""
    target = stream.targets[stream.model[turn]]
    pixels = stream.images[stream.image[turn]]
    tensor = wire.ModelInferRequest.InferInputTensor(
        name=target.input, datatype="FP32", shape=(1, *target.shape)
    )
    return wire.ModelInferRequest(
        model_name=target.name,
        id=str(turn),
        inputs=[tensor],
        raw_input_contents=[pixels.tobytes()],
    )


def scores(response: wire.ModelInferResponse) -> Floats:
    """The first output's row, raw or typed; empty if there is none."""
    if response.raw_output_contents:
        return np.frombuffer(response.raw_output_contents[0], np.float32)
    if not response.outputs:
        return np.empty(0, np.float32)
    return np.asarray(response.outputs[0].contents.fp32_contents, np.float32)


def temperature(response: wire.ModelInferResponse) -> int:
    """Index into TEMPERATURES, UNKNOWN if the server did not say."""
    said = response.parameters[TEMPERATURE].string_param
    return TEMPERATURES.index(said) if said in TEMPERATURES else UNKNOWN


async def send(
    stream: Stream, target: str, concurrency: int, say: Callable[[str], object]
) -> Answers:
    """The whole stream in its order: `concurrency` at a time, the last ones alone."""
    answers = Answers.none_yet(len(stream), classes=10)
    tally = Tally(say, time.perf_counter())
    async with grpc.aio.insecure_channel(target, options=OPTIONS) as channel:
        stub = GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
        sender = Sender(stream, answers, tally, stub)
        await sender.send(range(stream.crowded), concurrency)
        await sender.send(range(stream.crowded, len(stream)), 1)
    tally.tell(time.perf_counter())
    return answers


def main() -> None:
    """The process's own main."""
    parser = argparse.ArgumentParser(description="Send the demo's stream.")
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--target", required=True)
    parser.add_argument("--concurrency", type=int, required=True)
    options = parser.parse_args()

    def say(line: str) -> None:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    stream = Stream.read(options.directory)
    answers = asyncio.run(send(stream, options.target, options.concurrency, say))
    answers.write(options.directory)


if __name__ == "__main__":
    main()
