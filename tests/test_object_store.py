"""hotset over real object stores: SeaweedFS for S3, azurite for Azure."""

import asyncio
import contextlib
import json

import pytest
import torch

from bench.proxy import Counter, Passed, proxy
from loader.errors import ArtifactRefused, LoadFailed, ModelNotFound, StoreDenied
from loader.hosts import NOWHERE, fence, host_of, hosts
from loader.ranges import CHUNK
from loader.store import Changed, Missing, Part, Store
from runtime.compose import composed
from runtime.config import Settings
from runtime.engine import Request
from runtime.errors import BackingOff
from runtime.observer import NullObserver
from tests import tiny_models
from tests.object_store import upload

SECRET = "CANARYsecret"
ROLES = "/latest/meta-data/iam/security-credentials"


@contextlib.asynccontextmanager
async def engine_over(url: str, **settings):
    told = {"store": url, "device": "cpu", "budget": "64MiB", **settings}
    async with composed(Settings(**told), NullObserver()) as engine:
        yield engine
    assert (await engine.snapshot()).held == 0


async def ask(engine, model: str, version: str = "") -> float:
    answer = await engine.predict(Request(model, {"x": torch.ones(1, 4)}, version))
    return answer.outputs[0][1][0, 0].item()


@pytest.fixture
def counter(seaweed_server, s3, monkeypatch):
    """A counting proxy, and the environment pointing at it."""
    with proxy(seaweed_server.endpoint) as counter:
        monkeypatch.setenv("AWS_ENDPOINT_URL", counter.endpoint)
        yield counter


def weights_in(counter: Counter) -> list[Passed]:
    return [p for p in counter.taken() if "safetensors" in p.path]


def spans(passed: list[Passed]) -> list[tuple[int, int]]:
    """The ranges that were asked for, `[start, end)`, in order."""
    asked = (p.range.removeprefix("bytes=").split("-") for p in passed)
    return sorted((int(start), int(end) + 1) for start, end in asked)


async def test_models_are_served_from_s3(s3: str) -> None:
    for factor in (3, 5):
        await upload(s3, f"m{factor}/1", tiny_models.files(factor))
    async with engine_over(s3) as engine:
        assert await asyncio.gather(ask(engine, "m3"), ask(engine, "m5")) == [3.0, 5.0]
        assert (await engine.snapshot()).loads == 2


async def test_versions_and_the_latest(s3: str) -> None:
    for version in ("2", "10", "1"):
        made = tiny_models.files(float(version))
        await upload(s3, f"m/{version}", made)
    async with engine_over(s3) as engine:
        assert await engine.versions("m") == ["1", "2", "10"]
        assert await ask(engine, "m") == 10.0
        assert await ask(engine, "m", "2") == 2.0


async def test_a_model_without_a_version_folder(s3: str) -> None:
    await upload(s3, "m", tiny_models.files(4))
    async with engine_over(s3) as engine:
        assert await ask(engine, "m") == 4.0
        assert await ask(engine, "m", "1") == 4.0


async def test_what_is_not_there(s3: str) -> None:
    await upload(s3, "m/1", tiny_models.files())
    async with engine_over(s3) as engine:
        with pytest.raises(ModelNotFound, match="unknown model: 'nobody' is not"):
            await ask(engine, "nobody")
        with pytest.raises(ModelNotFound, match="'m' version 7"):
            await ask(engine, "m", "7")


async def test_wrong_credentials(s3: str, monkeypatch) -> None:
    await upload(s3, "m/1", tiny_models.files())
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    async with engine_over(s3) as engine:
        for version in ("", "1"):
            with pytest.raises(StoreDenied) as denied:
                await ask(engine, "m", version)
            assert SECRET not in denied.value.message
            assert "127.0.0.1" not in denied.value.message


async def test_a_bucket_that_is_not_there(s3: str) -> None:
    async with engine_over("s3://no-such-bucket/x") as engine:
        with pytest.raises(LoadFailed):
            await ask(engine, "m", "1")


async def test_a_small_model_takes_one_request_for_its_weights(
    s3: str, counter: Counter
) -> None:
    await upload(s3, "m/1", tiny_models.files(2, extra=CHUNK - 4096))
    counter.taken()
    async with engine_over(s3) as engine:
        assert await ask(engine, "m") == 2.0
    assert [p.method for p in weights_in(counter)] == ["GET"]


async def test_a_large_model_comes_in_ranges_of_one_object(
    s3: str, counter: Counter
) -> None:
    """All at once; under the ETag as soon as it is known, from the first load on."""
    made = tiny_models.files(2, extra=2 * CHUNK + 12345)
    await upload(s3, "m/1", made)
    counter.taken()
    loads = []
    async with engine_over(s3) as engine:
        for _ in range(2):
            assert await ask(engine, "m") == 2.0
            await engine.unload("m")
            loads.append(weights_in(counter))
    for passed in loads:
        at = 0
        for start, end in sorted(spans(passed)):
            assert start == at
            assert end - start <= CHUNK
            at = end
        assert at == len(made["model.safetensors"])
        assert len(passed) == 3
    first, second = ({p.if_match for p in passed} for passed in loads)
    assert first == {""}
    assert len(second) == 1
    assert second != {""}


async def test_a_model_published_anew_is_served(s3: str) -> None:
    """The weights first: until the manifest follows, the model is refused."""
    await upload(s3, "m/1", tiny_models.files(2))
    async with engine_over(s3, catalog_ttl=0.01) as engine:
        assert await ask(engine, "m") == 2.0
        await engine.unload("m")
        new = tiny_models.files(3)
        await Store.open(s3).put("m/1/model.safetensors", new["model.safetensors"])
        with pytest.raises((ArtifactRefused, BackingOff)):
            await ask(engine, "m")
        await upload(s3, "m/1", new)
        while True:  # the manifest is read anew behind the requests' backs
            with contextlib.suppress(ArtifactRefused, BackingOff):
                assert await ask(engine, "m") == 3.0
                break
            await asyncio.sleep(0.01)


# ---- what MemoryStore promises in test_store.py, real servers keep ------------------


@pytest.fixture(params=["s3", "azure"])
def store(request) -> Store:
    return Store.open(request.getfixturevalue(request.param))


async def taken(part: Part) -> bytes:
    return b"".join([piece async for piece in part.pieces])


async def test_ranges_are_of_one_object(store: Store) -> None:
    await store.put("a/1/x", b"0123456789")
    first = await store.part("a/1/x", 0, 4)
    assert (await taken(first), first.size) == (b"0123", 10)
    rest = await store.part("a/1/x", 4, 10, first.etag)
    assert await taken(rest) == b"456789"
    await store.put("a/1/x", b"abcdefghij")
    with pytest.raises(Changed):
        await store.part("a/1/x", 4, 10, first.etag)


async def test_a_file_that_is_not_there(store: Store) -> None:
    await store.put("a/1/x", b"0123456789")
    with pytest.raises(Missing):
        await store.small("a/1/y")


async def test_children_and_models(store: Store) -> None:
    await store.put("a/1/x", b"0123456789")
    await store.put("b/x", b"")
    assert await store.children("a/") == (["1"], [])
    assert [name async for name in store.models()] == ["a", "b"]


# ---- Azure --------------------------------------------------------------------------


async def test_models_are_served_from_azure(azure: str) -> None:
    await upload(azure, "m/1", tiny_models.files(3))
    await upload(azure, "m/2", tiny_models.files(7, extra=CHUNK + 12345))
    async with engine_over(azure) as engine:
        assert await engine.versions("m") == ["1", "2"]
        assert await ask(engine, "m") == 7.0
        assert await ask(engine, "m", "1") == 3.0


async def test_wrong_credentials_for_azure(azure: str, monkeypatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "Q0FOQVJZ")
    with pytest.raises(StoreDenied) as denied:
        await Store.open(azure).small("m/1/model.json")
    assert "CANARY" not in denied.value.message
    assert "Q0FOQVJZ" not in denied.value.message


# ---- URLs, and the hosts behind them ------------------------------------------------


def test_google_urls_make_stores(monkeypatch) -> None:
    """There is no emulator here that obstore can write to: only URL and environment."""
    monkeypatch.setenv("GOOGLE_SKIP_SIGNATURE", "true")
    assert repr(Store.open("gs://bucket/prefix")) == "Store(gs://...)"
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", "/no/such/file.json")
    with pytest.raises(ValueError, match="gs:// URL and its environment do not"):
        Store.open("gs://bucket/prefix")


OWN = {"AWS_ENDPOINT_URL": "http://minio.local:9000", "AWS_ACCESS_KEY_ID": "a"}


@pytest.mark.parametrize(
    ("scheme", "environ", "inside", "outside"),
    [
        ("s3", OWN, {"minio.local"}, {"amazonaws.com", "169.254.169.254"}),
        ("s3a", {**OWN, "AWS_ENDPOINT_URL": "http://[::1]:1"}, {"::1"}, {"metadata"}),
        ("s3", {"S3_ENDPOINT": "minio:9000", "AWS_ACCESS_KEY_ID": "a"}, {"minio"},
         {"amazonaws.com"}),
        ("s3", {"AWS_ACCESS_KEY_ID": "a"}, {"amazonaws.com"}, {"169.254.169.254"}),
        ("s3", {}, {"amazonaws.com", "169.254.169.254"}, {"googleapis.com"}),
        ("gs", {}, {"googleapis.com", "metadata.google.internal"}, {"windows.net"}),
        ("az", {"AZURE_STORAGE_ACCOUNT_KEY": "k"}, {"windows.net"}, {"metadata"}),
        ("abfss", {}, {"windows.net", "169.254.169.254"}, {"googleapis.com"}),
    ],
)  # fmt: skip
def test_the_hosts_that_a_store_may_reach(scheme, environ, inside, outside) -> None:
    found = set(hosts(scheme, environ))
    assert inside <= found
    assert not outside & found


def test_an_operators_proxy_takes_the_fences_place() -> None:
    assert fence("s3", OWN)["proxy_url"] == NOWHERE
    assert fence("s3", {**OWN, "HTTPS_PROXY": "http://squid:3128"}) == {}
    assert host_of("http://[") == ""


async def test_keys_from_a_metadata_service_come_through_the_fence(
    s3: str, seaweed_server, monkeypatch
) -> None:
    """As EC2 hands them out: by another host than the store's."""
    environ = seaweed_server.environ()
    keys = {
        "AccessKeyId": environ["AWS_ACCESS_KEY_ID"],
        "SecretAccessKey": environ["AWS_SECRET_ACCESS_KEY"],
        "Token": "",
        "Expiration": "2099-01-01T00:00:00Z",
    }
    paths: list[str] = []

    async def hand_out(reader, writer) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        path = head.split(" ")[1]
        paths.append(path)
        body = {"/latest/api/token": "t", f"{ROLES}/": "role"}.get(path)
        text = json.dumps(keys) if body is None else body
        writer.write(
            f"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: application/json"
            f"\r\ncontent-length: {len(text)}\r\n\r\n{text}".encode()
        )
        await writer.drain()
        writer.close()

    await upload(s3, "m/1", tiny_models.files())
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    service = await asyncio.start_server(hand_out, "127.0.0.2", 0)
    port = service.sockets[0].getsockname()[1]
    # Without this variable the cloud's own service would be asked: never in a test.
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", f"http://127.0.0.2:{port}")
    async with service:
        with contextlib.suppress(StoreDenied):  # a server may refuse the empty token
            await Store.open(s3).small("m/1/model.json")
    assert f"{ROLES}/role" in paths
