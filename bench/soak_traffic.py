"""The requests of bench.soak: what a fleet hears in an hour, each answer judged.

Owns: the kinds of request, and what becomes of each. Must not: decide when
they are sent (bench/soak_course.py), or forgive. An outcome is one of

    right, wrong        an answer, held against its model's reference
    refused             what must be refused was, with the right code
    left                the caller went before there was an answer, as it meant to
    lost                a valid request whose caller waited, and was not answered
    strange             a code, or an answer, where there should have been another
"""

import asyncio
import contextlib
import http.client
import json
import random
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from itertools import accumulate

import grpc
import torch

from bench import soak_leavers
from bench.client import DEADLINE_S
from bench.process import Server
from bench.right import TOLERANCE, is_right
from bench.soak_models import ROWS, WIDE, Fleet
from bench.traffic import METHOD, example, request, shares
from protos import open_inference_pb2 as pb
from runtime.wire import TEMPERATURE

ALPHA = 1.0
HASTE_S = 0.02
"""Deadlines of callers in haste are below; a hit takes two milliseconds, a load ten."""

KINDS = {
    "plain": 0.68,
    "gzip": 0.06,
    "rest": 0.05,
    "unknown": 0.04,
    "malformed": 0.04,
    "cancelled": 0.05,
    "hasty": 0.04,
    "gone": 0.02,
    "fresh": 0.018,
    "large": 0.002,
}
"""How much of the traffic each kind is."""


@dataclass(frozen=True, slots=True)
class Told:
    """What became of a request; `met`: hit, wait or miss, of a plain one; `code`: of
    one that is lost or strange."""

    outcome: str
    met: str = ""
    code: str = ""


class Line:
    """One server as its callers know it. `run` sends a request of some kind."""

    def __init__(
        self, server: Server, fleet: Fleet, seed: int, without: Collection[str] = ()
    ) -> None:
        self._server = server
        self._right = fleet.right
        self._chance = random.Random(seed)
        self._names = list(fleet.right)
        self._chance.shuffle(self._names)
        self._cumulative = list(accumulate(shares(len(self._names), ALPHA)))
        self._one = {n: request(n).SerializeToString() for n in self._names}
        self._many = {n: request(n, ROWS).SerializeToString() for n in self._names}
        self._wide = (torch.arange(WIDE, dtype=torch.float32) % 17).numpy().tobytes()
        self._channel = soak_leavers.channel(server)
        self._shares = {kind: n for kind, n in KINDS.items() if kind not in without}
        self._kinds: dict[str, Callable[[str], Awaitable[Told]]] = {
            "plain": self._plain,
            "gzip": self._gzip,
            "rest": self._rest,
            "unknown": self._unknown,
            "malformed": self._malformed,
            "cancelled": self._cancelled,
            "hasty": self._hasty,
            "gone": self._gone,
            "fresh": self._fresh,
            "large": self._large,
        }

    async def aclose(self) -> None:
        """The connection that was kept."""
        await self._channel.close()

    def kind(self) -> str:
        """Of the next request."""
        kinds, weights = list(self._shares), list(self._shares.values())
        (kind,) = self._chance.choices(kinds, weights)
        return kind

    async def run(self, kind: str) -> Told:
        """Send one; never raises for what a server may do."""
        (name,) = self._chance.choices(self._names, cum_weights=self._cumulative)
        try:
            return await self._kinds[kind](name)
        except grpc.aio.AioRpcError as error:
            return Told("lost", code=f"{error.code().name}: {error.details()}")
        except (OSError, http.client.HTTPException) as error:
            return Told("lost", code=repr(error))

    def _call(
        self,
        message: bytes,
        timeout: float = DEADLINE_S,
        compression: grpc.Compression | None = None,
    ) -> "grpc.aio.UnaryUnaryCall[bytes, bytes]":
        method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]
        method = self._channel.unary_unary(METHOD)
        return method(message, timeout=timeout, compression=compression)

    def _judged(self, name: str, answer: bytes, rows: int = 1) -> Told:
        if not is_right(answer, self._right[name][:rows]):
            return Told("wrong")
        parameters = pb.ModelInferResponse.FromString(answer).parameters
        return Told("right", parameters[TEMPERATURE].string_param)

    async def _plain(self, name: str) -> Told:
        return self._judged(name, await self._call(self._one[name]))

    async def _gzip(self, name: str) -> Told:
        asked = self._call(self._many[name], compression=grpc.Compression.Gzip)
        return self._judged(name, await asked, ROWS)

    async def _rest(self, name: str) -> Told:
        status, body = await asyncio.to_thread(_posted, self._server.http, name)
        if status != http.client.OK:
            return Told("lost", code=f"HTTP {status}: {body[:200]!r}")
        (output,) = json.loads(body)["outputs"]
        given, wanted = torch.tensor(output["data"]).flatten(), self._right[name][0]
        same = given.shape == wanted.shape
        right = same and torch.allclose(given, wanted, atol=TOLERANCE)
        return Told("right" if right else "wrong")

    async def _unknown(self, name: str) -> Told:
        # A new name each time: nothing may be kept of what was asked for in vain.
        asked = request(f"nobody-{self._chance.getrandbits(64):x}")
        return await self._refused(asked, grpc.StatusCode.NOT_FOUND)

    async def _malformed(self, name: str) -> Told:
        asked, which = request(name), self._chance.randrange(4)
        if which == 0:
            asked.raw_input_contents[0] = asked.raw_input_contents[0][:-1]
        elif which == 1:
            asked.inputs[0].datatype = "INT64"
        elif which == 2:
            asked.inputs[0].shape[0] = -(2**40)
        else:
            asked.inputs[0].name = "y"
        return await self._refused(asked, grpc.StatusCode.INVALID_ARGUMENT)

    async def _refused(
        self, asked: pb.ModelInferRequest, wanted: grpc.StatusCode
    ) -> Told:
        try:
            await self._call(asked.SerializeToString())
        except grpc.aio.AioRpcError as error:
            if error.code() is wanted:
                return Told("refused")
            return Told("strange", code=f"{error.code().name}: {error.details()}")
        return Told("strange", code="an answer")

    async def _cancelled(self, name: str) -> Told:
        call = self._call(self._one[name])
        await asyncio.sleep(self._chance.uniform(0.0, HASTE_S / 4))
        call.cancel()
        try:
            return self._judged(name, await call)
        except asyncio.CancelledError:
            return Told("left")

    async def _hasty(self, name: str) -> Told:
        timeout = self._chance.uniform(HASTE_S / 20, HASTE_S)
        try:
            return self._judged(name, await self._call(self._one[name], timeout))
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                return Told("left")
            return Told("strange", code=f"{error.code().name}: {error.details()}")

    async def _gone(self, name: str) -> Told:
        leave = self._chance.choice(soak_leavers.WAYS)
        # Cut by the server first: that is its right, with half a message.
        with contextlib.suppress(ConnectionError):
            await leave(self._server, name, self._many[name])
        return Told("left")

    async def _fresh(self, name: str) -> Told:
        async with soak_leavers.channel(self._server) as channel:
            method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]
            method = channel.unary_unary(METHOD)
            return self._judged(name, await method(self._one[name], timeout=DEADLINE_S))

    async def _large(self, name: str) -> Told:
        wide = pb.ModelInferRequest(model_name="same")
        wide.inputs.add(name="x", datatype="FP32", shape=[1, WIDE])
        wide.raw_input_contents.append(self._wide)
        answer = await self._call(wide.SerializeToString())
        said = pb.ModelInferResponse.FromString(answer)
        return Told(
            "right" if list(said.raw_output_contents) == [self._wide] else "wrong"
        )


def _posted(address: str, name: str) -> tuple[int, bytes]:
    """A predict as JSON, over a connection of its own."""
    data = example().flatten().tolist()
    tensor = {"name": "x", "shape": [1, len(data)], "datatype": "FP32", "data": data}
    host, _, port = address.rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=DEADLINE_S)
    try:
        body = json.dumps({"inputs": [tensor]})
        connection.request("POST", f"/v2/models/{name}/infer", body)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()
