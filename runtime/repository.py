"""The model repository: index, load, unload, configuration, statistics.

Owns: what each method answers, and the two dialects of load and unload. Must not: know
gRPC, or keep state. Inference is in runtime/service.py.
"""

from collections.abc import Iterable, Mapping

from loader.errors import LoadFailed
from loader.manifest import ModelSpec
from protos import open_inference_pb2 as pb
from runtime.call import Call, deadline_of
from runtime.engine import Duration, Engine, ModelStatistics
from runtime.errors import BadRequest
from runtime.service import PLATFORM
from runtime.wire import check_address


class Repository:
    """The methods about the set of models."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def RepositoryIndex(
        self, request: pb.RepositoryIndexRequest, call: Call
    ) -> pb.RepositoryIndexResponse:
        _refuse_repository(request.repository_name)
        response = pb.RepositoryIndexResponse()
        for entry in await self._engine.index(ready_only=request.ready):
            response.models.add(
                name=entry.name,
                version=entry.version,
                state=entry.state,
                reason=entry.reason,
            )
        return response

    async def RepositoryModelLoad(
        self, request: pb.RepositoryModelLoadRequest, call: Call
    ) -> pb.RepositoryModelLoadResponse:
        model = _model(request)
        for parameter in request.parameters:
            raise BadRequest(f"load parameter '{parameter}' is not supported")
        try:
            await self._engine.load(model, deadline=deadline_of(call))
        except LoadFailed as error:
            raise _failed_to_load(model, error) from error
        return pb.RepositoryModelLoadResponse(model_name=model, isLoaded=True)

    async def RepositoryModelUnload(
        self, request: pb.RepositoryModelUnloadRequest, call: Call
    ) -> pb.RepositoryModelUnloadResponse:
        model = _model(request)
        for parameter in request.parameters:
            # No model depends on another: with or without, the same happens.
            if parameter != "unload_dependents":
                raise BadRequest(f"unload parameter '{parameter}' is not supported")
        await self._engine.unload(model)
        return pb.RepositoryModelUnloadResponse(model_name=model, isUnloaded=True)

    async def ModelConfig(
        self, request: pb.ModelConfigRequest, call: Call
    ) -> pb.ModelConfigResponse:
        check_address(request.name, request.version)
        spec = await self._engine.describe(request.name, request.version)
        return pb.ModelConfigResponse(config=_config(spec))

    async def ModelStatistics(
        self, request: pb.ModelStatisticsRequest, call: Call
    ) -> pb.ModelStatisticsResponse:
        if not request.name:
            return _statistics(await self._engine.statistics())
        check_address(request.name, request.version)
        known = await self._engine.statistics(request.name, request.version)
        if not known:
            # In the store and never asked for, or not there at all: describe() knows.
            spec = await self._engine.describe(request.name, request.version)
            known = [_never_used(spec)]
        return _statistics(known)


def _model(
    request: pb.RepositoryModelLoadRequest | pb.RepositoryModelUnloadRequest,
) -> str:
    """The model meant, in either dialect: KServe's has it where ours has the
    repository."""
    model = request.model_name or request.repository_name
    if request.model_name:
        _refuse_repository(request.repository_name)
    check_address(model, "")
    return model


def _refuse_repository(name: str) -> None:
    if name:
        raise BadRequest("'repository_name' specification is not supported")


def _failed_to_load(model: str, error: LoadFailed) -> LoadFailed:
    """The same error, saying first what was tried: clients look for these words.

    A new object, because a failed load's error is shared by all who waited for it.
    """
    kind = type(error)
    renamed = kind.__new__(kind, f"failed to load '{model}', {error.message}")
    renamed.__dict__.update(error.__dict__)
    return renamed


# ---- configuration ----------------------------------------------------------------


def _config(spec: ModelSpec) -> pb.ModelConfig:
    """What Triton's clients read of a configuration. `dims` leave the batch out."""
    batched = spec.max_batch_size > 0
    config = pb.ModelConfig(
        name=spec.name, backend=PLATFORM, max_batch_size=spec.max_batch_size
    )
    for tensor in spec.inputs:
        config.input.add(
            name=tensor.name,
            data_type=f"TYPE_{tensor.datatype}",
            dims=tensor.shape[1:] if batched else tensor.shape,
        )
    for tensor in spec.outputs:
        config.output.add(
            name=tensor.name,
            data_type=f"TYPE_{tensor.datatype}",
            dims=tensor.shape[1:] if batched else tensor.shape,
        )
    if batched:
        config.dynamic_batching.SetInParent()
    return config


# ---- statistics -------------------------------------------------------------------


def _statistics(models: Iterable[ModelStatistics]) -> pb.ModelStatisticsResponse:
    response = pb.ModelStatisticsResponse()
    for model in models:
        response.model_stats.add(
            name=model.name,
            version=model.version,
            last_inference=int(model.last_use * 1e3),
            inference_count=model.requests,
            execution_count=model.executions,
            inference_stats=_inference_stats(model),
            memory_usage=_memory(model.bytes_by_tier),
        )
    return response


def _inference_stats(model: ModelStatistics) -> pb.InferStatistics:
    # Decoding and encoding are not timed a model; clients still divide by their count.
    free = Duration(model.compute.count, 0.0)
    return pb.InferStatistics(
        success=_duration(model.success),
        fail=_duration(model.fail),
        queue=_duration(model.queue),
        compute_input=_duration(free),
        compute_infer=_duration(model.compute),
        compute_output=_duration(free),
        cache_hit=_duration(model.hits),
        cache_miss=_duration(model.misses),
    )


def _duration(duration: Duration) -> pb.StatisticDuration:
    return pb.StatisticDuration(count=duration.count, ns=int(duration.seconds * 1e9))


def _memory(bytes_by_tier: Mapping[str, int]) -> list[pb.MemoryUsage]:
    """Tiers in the protocol's words; it has none for a disk. Beside a GPU the host
    tier is pinned memory (loader/host.py)."""
    usage = []
    pinned = any(tier.startswith("cuda") for tier in bytes_by_tier)
    kind = {"cuda": "GPU", "cpu": "CPU", "host": "CPU_PINNED" if pinned else "CPU"}
    kind["ahead"] = kind["host"]
    for tier, nbytes in bytes_by_tier.items():
        device, _, number = tier.partition(":")
        if device in kind:
            usage.append(
                pb.MemoryUsage(type=kind[device], id=int(number or 0), byte_size=nbytes)
            )
    return usage


def _never_used(spec: ModelSpec) -> ModelStatistics:
    none = Duration()
    return ModelStatistics(
        spec.name, spec.version, 0, 0, 0.0, none, none, none, none, none, none
    )
