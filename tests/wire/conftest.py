"""The wire, end to end: real servers, real sockets on 127.0.0.1.

Every test runs over all front ends, two of them with their engine asked over a socket,
too (runtime/link; zttp over one: tests/test_http2.py): grpc.aio and zttp in this
process, and Envoy in a process of its own with the same fake engine in it.
`begin(engine, options)` serves.
"""

import grpc
import pytest

from protos import open_inference_pb2_grpc
from runtime.server import Options, start
from tests import envoy_process
from tests.apart import apart
from tests.fake_engine import FakeEngine
from tests.server_process import FRONTENDS, skip_without

ADDRESS = "127.0.0.1:0"


def starter(frontend):
    """`start` of a front end in this process; one of them is an extra."""
    if frontend == "grpcio":
        return start
    from runtime.http2.server import start as start_zttp

    return start_zttp


@pytest.fixture(params=[*FRONTENDS, "grpcio, apart", "envoy, apart"])
def combination(request):
    """A front end, and whether its engine is asked over a socket."""
    frontend, _, where = request.param.partition(", ")
    skip_without(frontend)
    return frontend, where == "apart"


@pytest.fixture
def frontend(combination):
    return combination[0]


@pytest.fixture(scope="package")
def envoys(tmp_path_factory):
    envoys = envoy_process.Envoys(tmp_path_factory.mktemp("envoys"))
    yield envoys
    envoys.end()


@pytest.fixture
async def engine(frontend, request):
    if frontend != "envoy":
        yield FakeEngine()
        return
    envoys = request.getfixturevalue("envoys")
    envoy = envoys.take()
    yield envoy_process.RemoteEngine(envoy)
    envoys.give_back(envoy)


@pytest.fixture
async def seam(combination, engine):
    """What the services hold: the engine itself, or one that asks it over a socket.
    Envoy's are in its process."""
    frontend, is_apart = combination
    if frontend == "envoy" or not is_apart:
        yield engine
        return
    async with apart(engine) as (remote, _):
        yield remote


@pytest.fixture
async def begin(combination):
    """Serve an engine; what comes back is entered, and has `ends`."""

    async def serve(engine, options=None):
        options = options or Options()
        frontend, is_apart = combination
        if frontend == "envoy":
            return envoy_process.begin(engine, options, is_apart)
        ends = []
        serving = await starter(frontend)(
            engine,
            address=ADDRESS,
            options=options,
            on_end=lambda *end: ends.append(end),
        )
        serving.ends = ends
        return serving

    return serve


@pytest.fixture
async def serving(begin, seam):
    async with await begin(seam, Options(grace=2.0)) as serving:
        yield serving


@pytest.fixture
async def channel(serving):
    async with grpc.aio.insecure_channel(serving.address) as channel:
        yield channel


@pytest.fixture
async def stub(channel):
    return open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)


@pytest.fixture
def refused():
    """Await a call that must fail; gives its grpc.aio.AioRpcError."""

    async def wait(call):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        return caught.value

    return wait
