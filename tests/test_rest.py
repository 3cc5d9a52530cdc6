import asyncio
import signal
import socket
from contextlib import asynccontextmanager
from dataclasses import replace

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families as parse

from runtime import rest
from runtime.counts import Counts
from runtime.engine import Resident, Snapshot
from runtime.metrics import Metrics
from runtime.report import About, NotAReport, Report, decode, encode
from runtime.rest import LARGEST_HEAD, CannotListen, application, listening
from runtime.rest_pages import ServerInfo
from tests.fake_engine import FakeEngine

INFO = ServerInfo("hotset-test", "1.2.3", ("model_repository",))


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def counts() -> Counts:
    return Counts()


@pytest.fixture
async def client(engine, counts):
    """A real client on a real socket."""
    app = application(engine, Metrics(counts, INFO.version), INFO)
    async with (
        listening(app, "127.0.0.1", 0) as port,
        httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", trust_env=False
        ) as client,
    ):
        yield client


async def test_health_of_a_server_that_is_ready(client):
    for path in ("/v2/health/live", "/v2/health/ready"):
        answer = await client.get(path)
        assert answer.status_code == 200
        assert answer.json() == {"live": True, "ready": True}


async def test_a_draining_server_is_live_and_not_ready(client, engine):
    engine.ready = False
    ready = await client.get("/v2/health/ready")
    assert ready.status_code == 503
    assert ready.json() == {"ready": False, "live": True}
    live = await client.get("/v2/health/live")
    assert live.status_code == 200
    assert live.json() == {"live": True, "ready": False}


async def test_a_probe_may_ask_for_the_head_only(client):
    answer = await client.head("/v2/health/ready")
    assert answer.status_code == 200
    assert answer.content == b""


async def test_the_server_tells_who_it_is(client):
    assert (await client.get("/v2")).json() == {
        "name": "hotset-test",
        "version": "1.2.3",
        "extensions": ["model_repository"],
    }
    assert (await client.get("/")).json() == {"status": "alive"}


async def test_metrics_are_read_back_by_prometheus_own_parser(client, counts):
    counts.answered("m", "hit", 0.001, 1)
    answer = await client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    names = {family.name for family in parse(answer.text)}
    assert {"hotset_requests", "hotset_memory_held_bytes", "process_open_fds"} <= names
    asked = {"accept": "application/openmetrics-text; version=1.0.0"}
    answer = await client.get("/metrics", headers=asked)
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert answer.text.endswith("# EOF\n")


@pytest.mark.parametrize("version", ["new", "1.x", "\xff", "", "1.0.0;q=x"])
async def test_a_scraper_may_ask_for_a_version_that_does_not_exist(client, version):
    asked = {"accept": f"application/openmetrics-text; version={version}".encode()}
    answer = await client.get("/metrics", headers=asked)
    assert answer.status_code == 200
    assert "hotset_requests" in answer.text


async def test_the_status_is_a_report(client, engine):
    answer = await client.get("/hotset/status")
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    report = decode(answer.content)
    assert report.about == About("hotset-test", "1.2.3", True)
    now = await engine.snapshot()
    assert report.snapshot == replace(now, residents=list(now.residents))
    assert answer.json()["capacity"] == (await engine.snapshot()).capacity


async def test_what_is_not_there_is_told_as_json(client):
    answer = await client.get("/v2/nothing")
    assert answer.status_code == 404
    assert answer.json() == {"error": "Not Found"}
    answer = await client.post("/metrics")
    assert answer.status_code == 405
    assert set(answer.json()) == {"error"}


async def test_a_bug_is_told_by_an_id_and_nothing_else(client, engine, monkeypatch):
    async def broken():
        raise RuntimeError("canary: s3://key:secret@host")

    monkeypatch.setattr(engine, "snapshot", broken)
    for path in ("/hotset/status", "/metrics"):
        answer = await client.get(path)
        assert answer.status_code == 500
        assert answer.json()["error"].startswith("internal error, id ")
        assert "canary" not in answer.text


async def test_the_page_is_not_made_on_the_loop(engine):
    """While a page is being made, the loop answers others."""
    making, go_on = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    class Slow(Metrics):
        def page(self, snapshot, accept=""):
            loop.call_soon_threadsafe(making.set)
            asyncio.run_coroutine_threadsafe(go_on.wait(), loop).result()
            return super().page(snapshot, accept)

    app = application(engine, Slow(Counts(), "1"), INFO)
    async with (
        listening(app, "127.0.0.1", 0) as port,
        httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", trust_env=False
        ) as client,
    ):
        scrape = asyncio.create_task(client.get("/metrics"))
        await making.wait()
        assert (await client.get("/v2/health/live")).status_code == 200
        assert not scrape.done()
        go_on.set()
        assert (await scrape).status_code == 200


async def test_a_head_without_end_is_cut(client):
    port = client.base_url.port
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET / HTTP/1.1\r\nx: " + b"a" * LARGEST_HEAD)
    answer = await reader.read()
    assert answer.startswith(b"HTTP/1.1 400")
    writer.close()


@pytest.mark.parametrize(
    ("first", "then"),
    [
        (b"", b""),
        (b"GET / HT", b""),
        (b"GET / HTTP/1.1\r\nhost: a\r\nx-", b""),
        (b"GET / HTTP/1.1\r\nhost: a\r\n\r\n", b"GET / HTTP/1.1\r\nx-"),
        (b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 99\r\n\r\n", b"x"),
    ],
)
async def test_who_does_not_come_to_the_point_is_sent_away(
    client, monkeypatch, first, then
):
    """Else a few hundred such connections keep every liveness probe out."""
    monkeypatch.setattr(rest, "HEAD_S", 0.2)
    port = client.base_url.port
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(first)
    if then:
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 ")
        writer.write(then)
    async with asyncio.timeout(10):
        await reader.read()  # to the end of the connection
    writer.close()


async def test_who_comes_to_the_point_may_stay(client, monkeypatch):
    monkeypatch.setattr(rest, "HEAD_S", 0.5)
    port = client.base_url.port
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for _ in range(4):  # each within its time, all of them together not
        writer.write(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        assert (await reader.readuntil(b"}")).startswith(b"HTTP/1.1 200")
        await asyncio.sleep(0.2)
    writer.close()


async def test_a_taken_port_is_told_before_anything_is_served(engine, counts):
    app = application(engine, Metrics(counts, "1"), INFO)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(CannotListen, match=f"127.0.0.1:{port}"):
            async with listening(app, "127.0.0.1", port):
                pytest.fail("nothing may be served")


async def test_signals_stay_with_their_owner_and_the_port_is_given_back(engine, counts):
    app = application(engine, Metrics(counts, "1"), INFO)
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)

    @asynccontextmanager
    async def served():
        async with (
            listening(app, "127.0.0.1", 0) as port,
            httpx.AsyncClient(trust_env=False) as client,
        ):
            assert (await client.get(f"http://127.0.0.1:{port}/")).status_code == 200
            yield port

    async with served() as port:
        during = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
        assert during == before
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)


async def test_it_listens_on_ipv6(engine, counts):
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    app = application(engine, Metrics(counts, "1"), INFO)
    try:
        async with (
            listening(app, "::1", 0) as port,
            httpx.AsyncClient(trust_env=False) as client,
        ):
            answer = await client.get(f"http://[::1]:{port}/v2/health/live")
            assert answer.status_code == 200
    except CannotListen:
        pytest.skip("no IPv6 loopback here")


def test_a_report_survives_its_journey():
    snapshot = Snapshot(
        device="cuda:0",
        policy="gdsf",
        capacity=2**40,
        held=1,
        peak_held=2,
        measured=None,
        waiting=0,
        uptime_s=1.5,
        requests={"hit": 1, "wait": 0, "miss": 2},
        loads=1,
        evictions=0,
        failures=0,
        residents=[
            Resident("m", "1", "READY", 5, "cuda:0", 1, 2, 0.25, True, "because")
        ],
    )
    report = Report(About("n", "v", False), snapshot)
    assert decode(encode(report)) == report


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"<html>", "the document: Invalid JSON"),
        (b"[]", "the document"),
        (b'{"name": "n", "version": "v", "ready": true}', "device"),
        (b'{"name": 1, "version": "v", "ready": true}', "name"),
    ],
)
def test_what_is_not_a_report_is_told_apart(data, says):
    with pytest.raises(NotAReport, match=says):
        decode(data)
