import grpc
import pytest

from protos import open_inference_pb2_grpc
from runtime.server import Options, start
from tests.apart import apart
from tests.fake_engine import FakeEngine

ADDRESS = "127.0.0.1:0"


@pytest.fixture
async def engine():
    return FakeEngine()


@pytest.fixture(params=["here", "apart"])
async def seam(request, engine):
    """What the services hold: the engine itself, or one that asks it over a socket."""
    if request.param == "here":
        yield engine
        return
    async with apart(engine) as (remote, _):
        yield remote


@pytest.fixture
async def serving(seam):
    async with await start(
        seam, address=ADDRESS, options=Options(grace=2.0)
    ) as serving:
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
