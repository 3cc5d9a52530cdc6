"""The Open Inference Protocol: server, one model, inference.

Owns: what each method answers. Must not: know gRPC (a call is a runtime/call.py Call),
catch what it cannot answer (runtime/status.py has the codes), or keep state: the engine
has all of it. The repository's methods are in runtime/repository.py.
"""

from collections.abc import AsyncIterator
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version

from loader.errors import ModelNotFound
from protos import open_inference_pb2 as pb
from runtime.call import Call, deadline_of
from runtime.engine import Engine
from runtime.limits import Readiness
from runtime.logs import about
from runtime.status import Status, answer_to
from runtime.wire import MAX_ANSWER, check_address, decode, encode, wants_raw

PLATFORM = "hotset"

EXTENSIONS = (
    "model_repository",
    "model_repository(unload_dependents)",
    "model_configuration",
    "statistics",
)
"""Only what is really there; names as Triton has them."""


class OpenInference:
    """The methods about the server, one model, and inference."""

    def __init__(
        self,
        engine: Engine,
        *,
        name: str = "hotset",
        ready_means: Readiness,
        max_answer: int = MAX_ANSWER,
    ) -> None:
        self._engine = engine
        self._name = name
        self._ready_means = ready_means
        self._max_answer = max_answer

    async def ServerLive(
        self, request: pb.ServerLiveRequest, call: Call
    ) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(
        self, request: pb.ServerReadyRequest, call: Call
    ) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=self._engine.ready)

    async def ServerMetadata(
        self, request: pb.ServerMetadataRequest, call: Call
    ) -> pb.ServerMetadataResponse:
        return pb.ServerMetadataResponse(
            name=self._name, version=_version(), extensions=EXTENSIONS
        )

    async def ModelReady(
        self, request: pb.ModelReadyRequest, call: Call
    ) -> pb.ModelReadyResponse:
        check_address(request.name, request.version)
        if self._ready_means == "resident":
            return pb.ModelReadyResponse(ready=await self._is_resident(request))
        try:
            ready = await self._engine.servable(request.name, request.version)
        except ModelNotFound:
            ready = False  # Triton's answer: not an error
        return pb.ModelReadyResponse(ready=ready)

    async def ModelMetadata(
        self, request: pb.ModelMetadataRequest, call: Call
    ) -> pb.ModelMetadataResponse:
        check_address(request.name, request.version)
        spec = await self._engine.describe(request.name, request.version)
        versions = await self._engine.versions(request.name)
        response = pb.ModelMetadataResponse(
            name=spec.name, versions=versions, platform=PLATFORM
        )
        for tensors, said in (
            (spec.inputs, response.inputs),
            (spec.outputs, response.outputs),
        ):
            for tensor in tensors:
                said.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        return response

    async def ModelInfer(
        self, request: pb.ModelInferRequest, call: Call
    ) -> pb.ModelInferResponse:
        about(request.id, request.model_name)
        raw = wants_raw(request)
        answer = await self._engine.predict(decode(request, deadline_of(call)))
        return encode(answer, id=request.id, raw=raw, limit=self._max_answer)

    async def ModelStreamInfer(
        self, requests: AsyncIterator[pb.ModelInferRequest], call: Call
    ) -> AsyncIterator[pb.ModelStreamInferResponse]:
        async for request in requests:
            try:
                answer = await self.ModelInfer(request, call)
                yield pb.ModelStreamInferResponse(infer_response=answer)
            except Exception as error:  # noqa: BLE001 (the stream outlives a request)
                yield _failed(request, answer_to(error, "ModelStreamInfer"))

    async def _is_resident(self, request: pb.ModelReadyRequest) -> bool:
        ready = await self._engine.index(ready_only=True)
        return any(
            entry.name == request.name and request.version in ("", entry.version)
            for entry in ready
        )


def _failed(
    request: pb.ModelInferRequest, status: Status
) -> pb.ModelStreamInferResponse:
    """The id goes along, or a client could not tell which of its requests failed."""
    return pb.ModelStreamInferResponse(
        error_message=status.text, infer_response=pb.ModelInferResponse(id=request.id)
    )


def _version() -> str:
    try:
        return installed_version("hotset")
    except PackageNotFoundError:  # run from a checkout that was never installed
        return "0"
