"""The Open Inference Protocol over REST: one model's metadata, readiness, inference.

    GET  /v2/models/MODEL[/versions/VERSION]            metadata
    GET  /v2/models/MODEL[/versions/VERSION]/ready      would a request be tried?
    POST /v2/models/MODEL[/versions/VERSION]/infer      JSON, or JSON with bytes behind

Owns: those routes, and how a body is read. Must not: know more of hotset than an
`Engine`, or have checks or texts of its own where gRPC has some: the body becomes the
message that says the same (runtime/rest_tensors.py), and takes its way.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from loader.manifest import TensorSpec
from runtime.asgi.vigil import Caller, Vigil
from runtime.engine import Engine
from runtime.errors import AnswerTooLarge, BadRequest
from runtime.limits import BODY_S
from runtime.logs import about
from runtime.rest_tensors import Asked, read, written
from runtime.service import PLATFORM
from runtime.wire import check_address, decode

HEAD_LENGTH = "inference-header-content-length"
AT_ONCE = 64 * 1024
"""Bytes of JSON that are read or written on the event loop; more in a thread."""

Endpoint = Callable[[Request], Awaitable[Response]]


class Models:
    """The endpoints about one model. `limit`: bytes of a body, either way."""

    def __init__(self, engine: Engine, vigil: Vigil, limit: int) -> None:
        self._engine = engine
        self._vigil = vigil
        self._limit = limit

    def routes(self) -> Mapping[tuple[str, str], Endpoint]:
        """Endpoint by method and path."""
        return {
            (method, f"/v2/models/{{model}}{version}{path}"): endpoint
            for version in ("", "/versions/{version}")
            for method, path, endpoint in (
                ("GET", "", self.metadata),
                ("GET", "/ready", self.ready),
                ("POST", "/infer", self.infer),
            )
        }

    async def metadata(self, request: Request) -> Response:
        """What the model takes and gives."""
        spec = await self._engine.describe(*_address(request))
        versions = await self._engine.versions(spec.name)
        return JSONResponse(
            {
                "name": spec.name,
                "versions": list(versions),
                "platform": PLATFORM,
                "inputs": [_described(tensor) for tensor in spec.inputs],
                "outputs": [_described(tensor) for tensor in spec.outputs],
            }
        )

    async def ready(self, request: Request) -> Response:
        """Like gRPC's ModelReady; a name nobody knows is 404, as KServe has it."""
        model, version = _address(request)
        ready = await self._engine.servable(model, version)
        if not ready:
            await self._engine.describe(model, version)
        return JSONResponse({"name": model, "ready": ready}, 200 if ready else 503)

    async def infer(self, request: Request) -> Response:
        """One predict, given up when its caller leaves."""
        model, version = _address(request)
        asked = await self._asked(request, model, version)
        about(asked.message.id, model)
        caller = Caller(request.receive)
        caller.watched = True
        task = self._vigil.begin(caller)
        try:
            answer = await self._engine.predict(decode(asked.message))
        except asyncio.CancelledError:
            status = caller.fate
            if status is None:
                return Response(status_code=499)  # the caller has left
            return JSONResponse({"error": status.text}, status.http)
        finally:
            del self._vigil.open[task]
        nbytes = sum(tensor.nbytes for _, tensor in answer.outputs)
        if nbytes > self._limit:
            raise AnswerTooLarge(
                f"the outputs of model '{model}' take {nbytes} bytes, "
                f"more than the {self._limit} of a message"
            )
        if nbytes <= AT_ONCE:
            return _response(*written(answer, asked))
        return _response(*await asyncio.to_thread(written, answer, asked))

    async def _asked(self, request: Request, model: str, version: str) -> Asked:
        body = await self._body(request)
        head = _head_length(request, len(body))
        if len(body) <= AT_ONCE:
            return read(body, head, model, version)
        return await asyncio.to_thread(read, body, head, model, version)

    async def _body(self, request: Request) -> bytes:
        if request.headers.get("content-encoding", "identity") != "identity":
            raise HTTPException(415, "send the body without a content-encoding")
        parts, size = [], 0
        try:
            async with asyncio.timeout(BODY_S):
                async for part in request.stream():
                    parts.append(part)
                    size += len(part)
                    if size > self._limit:
                        text = f"the request is larger than {self._limit} bytes"
                        raise HTTPException(413, text)
        except TimeoutError:
            raise HTTPException(408, "the request did not come to an end") from None
        except ClientDisconnect:
            raise BadRequest("the request ended early") from None
        return b"".join(parts)


def _address(request: Request) -> tuple[str, str]:
    model = request.path_params["model"]
    version = request.path_params.get("version", "")
    check_address(model, version)
    return model, version


def _head_length(request: Request, size: int) -> int | None:
    text = request.headers.get(HEAD_LENGTH)
    if text is None:
        return None
    # isdecimal alone takes digits of other scripts.
    if not (text.isascii() and text.isdecimal()) or len(text) > 10 or int(text) > size:
        raise BadRequest("Inference-Header-Content-Length is not the length of a part")
    return int(text)


def _response(body: bytes, head: int | None) -> Response:
    if head is None:
        return Response(body, media_type="application/json")
    return Response(
        body,
        headers={HEAD_LENGTH: str(head)},
        media_type="application/octet-stream",
    )


def _described(tensor: TensorSpec) -> dict[str, object]:
    return {
        "name": tensor.name,
        "datatype": tensor.datatype,
        "shape": list(tensor.shape),
    }
