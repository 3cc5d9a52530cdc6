"""URLs, environments and faults of object stores."""

import os
from pathlib import Path

import pytest
from obstore.store import MemoryStore

from loader.errors import StoreDenied, StoreUnreachable
from loader.store import Changed, Missing, Part, Store
from loader.store_options import client_options, s3_config


@pytest.fixture
def store() -> Store:
    return Store(MemoryStore(), "memory")


async def test_small_objects(store: Store) -> None:
    await store.put("m/1/model.json", b"{}")
    assert await store.small("m/1/model.json") == b"{}"
    with pytest.raises(Missing):
        await store.small("m/2/model.json")
    with pytest.raises(ValueError, match="has 2 bytes, limit 1"):
        await store.small("m/1/model.json", limit=1)


async def taken(part: Part) -> bytes:
    return b"".join([piece async for piece in part.pieces])


async def test_ranges_stay_with_one_object(store: Store) -> None:
    await store.put("x", b"0123456789")
    first = await store.part("x", 0, 4)
    assert await taken(first) == b"0123"
    assert first.size == 10
    second = await store.part("x", 4, 10, first.etag)
    assert await taken(second) == b"456789"
    await store.put("x", b"abcdefghij")
    with pytest.raises(Changed):
        await store.part("x", 4, 10, first.etag)


async def test_children_and_models(store: Store) -> None:
    for path in ("a/1/model.json", "a/2/model.json", "a/model.json", "b/model.json"):
        await store.put(path, b"{}")
    folders, objects = await store.children("a/")
    assert sorted(folders) == ["1", "2"]
    assert objects == ["model.json"]
    assert [name async for name in store.models()] == ["a", "b"]
    assert [name async for name in store.models("b")] == ["b"]


async def test_a_folder_is_a_store(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "model.json").write_bytes(b"{}")
    for url in (str(tmp_path), f"file://{tmp_path}"):
        assert await Store.open(url).small("m/model.json") == b"{}"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://169.254.169.254/latest", "'http://' is not a kind of store"),
        ("https://bucket", "'https://' is not a kind"),
        ("ftp://x/y", "'ftp://' is not a kind"),
        ("/no/such/folder", "there is no such folder"),
    ],
)
def test_what_is_no_store(url: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Store.open(url, {})


@pytest.mark.parametrize(
    ("environ", "config"),
    [
        ({}, {"region": "us-east-1"}),
        ({"AWS_REGION": "eu-1"}, {}),
        (
            {"S3_ENDPOINT": "minio:9000", "S3_USE_HTTPS": "0", "AWS_REGION": "x"},
            {"endpoint": "http://minio:9000"},
        ),
        (
            {"S3_ENDPOINT": "minio:9000", "AWS_REGION": "x"},
            {"endpoint": "https://minio:9000"},
        ),
        (
            {"AWS_ENDPOINT_URL": "http://s3:1", "S3_ENDPOINT": "n", "AWS_REGION": "x"},
            {"endpoint": "http://s3:1"},
        ),
        (
            {"S3_USER_VIRTUAL_BUCKET": "true", "AWS_REGION": "x"},
            {"virtual_hosted_style_request": "true"},
        ),
        ({"awsAnonymousCredential": "True", "AWS_REGION": "x"},
         {"skip_signature": "true"}),
    ],
)  # fmt: skip
def test_the_names_of_kserves_secrets(environ, config) -> None:
    assert s3_config(environ) == config


def test_tls_as_the_secret_says(tmp_path: Path) -> None:
    assert client_options({})["allow_http"] is False
    assert client_options({"S3_USE_HTTPS": "0"})["allow_http"] is True
    assert client_options({"AWS_ENDPOINT_URL": "http://x"})["allow_http"] is True
    assert client_options({"S3_ENDPOINT": "http://x"})["allow_http"] is True
    assert "allow_invalid_certificates" not in client_options({"S3_VERIFY_SSL": "1"})
    assert client_options({"S3_VERIFY_SSL": "0"})["allow_invalid_certificates"]
    bundle = tmp_path / "ca.pem"
    bundle.write_bytes(b"PEM")
    options = client_options({"AWS_CA_BUNDLE": str(bundle)})
    assert options["root_certificate"] == b"PEM"


@pytest.mark.parametrize("what", ["outside", "looping", "fifo", "folder", "device"])
async def test_what_is_no_plain_file_of_the_folder_is_missing(tmp_path, what) -> None:
    """A tenant that can write a link must not read what the server can read."""
    folder, secret = tmp_path / "store", tmp_path / "secret"
    (folder / "m").mkdir(parents=True)
    secret.write_text("{}")
    path = folder / "m" / "model.json"
    {
        "outside": lambda: path.symlink_to(secret),
        "looping": lambda: path.symlink_to(path),
        "fifo": lambda: os.mkfifo(path),
        "folder": lambda: path.mkdir(),
        "device": lambda: path.symlink_to("/dev/zero"),
    }[what]()
    store = Store.open(str(folder))
    with pytest.raises(Missing):
        await store.small("m/model.json")
    with pytest.raises(Missing):
        await store.part("m/model.json", 0, 1)
    with pytest.raises(Missing):
        store.local("m/model.json")


async def test_a_folder_on_the_way_must_not_lead_out_either(tmp_path) -> None:
    folder, outside = tmp_path / "store", tmp_path / "other"
    folder.mkdir()
    outside.mkdir()
    (outside / "model.json").write_text("{}")
    (folder / "m").symlink_to(outside)
    store = Store.open(str(folder))
    with pytest.raises(Missing):
        store.local("m/model.json")
    with pytest.raises(Missing):
        store.local("../other/model.json")


async def test_links_that_stay_inside_are_how_volumes_are_mounted(tmp_path) -> None:
    (tmp_path / "..data" / "m").mkdir(parents=True)
    (tmp_path / "..data" / "m" / "model.json").write_bytes(b"{}")
    (tmp_path / "m").symlink_to(tmp_path / "..data" / "m")
    assert await Store.open(str(tmp_path)).small("m/model.json") == b"{}"


SECRET = "AKIACANARY"


async def _answering(status: int):
    """A server on loopback that answers everything with one status."""
    import asyncio

    async def answer(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 %d X\r\ncontent-length: 0\r\n\r\n" % status)
        await writer.drain()
        writer.close()

    return await asyncio.start_server(answer, "127.0.0.1", 0)


@pytest.mark.parametrize(
    ("status", "kind"), [(403, StoreDenied), (404, Missing), (400, StoreUnreachable)]
)
async def test_faults_are_ours_and_tell_no_secret(status, kind, monkeypatch) -> None:
    server = await _answering(status)
    port = server.sockets[0].getsockname()[1]
    environ = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": SECRET,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
    }
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    async with server:
        store = Store.open("s3://bucket/prefix", environ)
        with pytest.raises(kind) as raised:
            await store.small("m/model.json")
    said = f"{raised.value} {store!r}"
    assert SECRET not in said
    assert str(port) not in said
    assert "bucket" not in said


async def test_a_store_that_is_not_there(monkeypatch) -> None:
    server = await _answering(200)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    environ = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_REGION": "x"}
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    with pytest.raises(StoreUnreachable):
        await Store.open("s3://bucket", environ).small("m/model.json")
