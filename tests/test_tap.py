# ruff: noqa: F811 - fixtures of tests/test_faults.py
"""A near store's bytes, read from the socket into their place: what comes that way, and
that whatever goes wrong there only means that they come the other way."""

import asyncio
import contextlib
import dataclasses
import itertools
import socket
import ssl
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pytest

from bench.proxy import proxy
from loader import draught, fill, nearness, tap
from loader.digest import FileRef
from loader.draught import Draught, spans
from loader.errors import StoreUnreachable
from loader.ranges import CHUNK
from loader.store import Store
from loader.tap import Dry, Flow, Tap, Wish
from loader.turns import ERRAND, Errand
from runtime import loading
from runtime.compose import composed
from runtime.config import Settings
from runtime.observer import NullObserver
from tests import fault_server as faults
from tests import tiny_models
from tests.fault_server import BUCKET, FaultServer
from tests.object_store import upload
from tests.quick_store import NearStore
from tests.test_faults import (
    CASES,
    GENEROUS,
    HANGING,
    HEALS,
    PLACES,
    SHORT,
    ask,
    engine_over,
    meets,
    model_files,
    only_well_is_held,
    outcome,
    server,  # noqa: F401
    shelf,  # noqa: F401
    struck,
    until_carried,
    verified_by,
)

KEY = PLACES["start"][0]


@pytest.fixture
def near(monkeypatch) -> Iterator[list[Tap]]:
    """Threads of the engine have a tap, as a porter's do, however slow we are; those
    that were made."""
    made, drawers = [], ThreadPoolExecutor(4, "tap")

    def tapping(store: Store, *args) -> fill.Filler:
        found = store.tap()
        if found is None:
            return fill.Filler(store, *args)
        made.append(found)
        return fill.Filler(store, *args, tap=(found, drawers))

    monkeypatch.setattr(nearness, "NEAR_S", 1e9)
    monkeypatch.setattr(draught, "ALONE", 2 * CHUNK)
    monkeypatch.setattr(loading, "Filler", tapping)
    yield made
    for each in made:
        each.close()
    drawers.shutdown()


@contextlib.asynccontextmanager
async def known(server: FaultServer, *args):
    """An engine that has loaded `ill` before, and let it go."""
    verified_by(server, "chunks")
    async with engine_over(server, *args) as engine:
        assert await outcome(engine, server) is HEALS
        await engine.unload("ill")
        server.asked.clear()
        yield engine


def tapped(server: FaultServer) -> list[tuple[int, int]]:
    """The ranges of `ill` that were asked for so, `[start, end)`, in order."""
    return sorted((a.start, a.end) for a in server.gets(KEY) if a.tapped)


# -- what comes this way --------------------------------------------------------------


async def test_the_second_load_comes_by_the_tap(server, near) -> None:
    size = len(server.objects[KEY])
    async with known(server) as engine:
        assert await outcome(engine, server) is HEALS
    assert tapped(server) == [(0, 2 * CHUNK), (2 * CHUNK, size)]
    asked = server.gets(KEY)
    assert len(asked) == len(tapped(server)), "nothing twice"
    etag = faults.etag_of(server.objects[KEY])
    assert {a.if_match for a in asked} == {etag}


async def test_the_first_one_does_not(server, near) -> None:
    """Where its bytes go is not known yet."""
    verified_by(server, "chunks")
    async with engine_over(server) as engine:
        assert await outcome(engine, server) is HEALS
    assert not tapped(server)


async def test_nor_what_is_verified_as_a_whole(server, near) -> None:
    async with engine_over(server) as engine:
        for _ in range(2):
            assert await outcome(engine, server) is HEALS
            await engine.unload("ill")
    assert not tapped(server)


async def test_nor_what_threads_of_the_engine_bring(server, monkeypatch) -> None:
    monkeypatch.setattr(nearness, "NEAR_S", 1e9)
    async with known(server) as engine:
        assert await outcome(engine, server) is HEALS
    assert not tapped(server)


async def test_nor_what_comes_from_afar(server, near, monkeypatch) -> None:
    monkeypatch.setattr(nearness, "NEAR_S", 0.0)
    async with known(server) as engine:
        assert await outcome(engine, server) is HEALS
    assert not tapped(server)


async def test_a_byte_tells_of_a_store_that_large_files_do_not(
    server,
    near,
    monkeypatch,
) -> None:
    """Their ranges begin late, all at once; none is asked for before that is known."""

    def timed(self, seconds: float, alone: bool = True) -> None:
        if server.asked[-1].end == 1:
            self._quickest = 1e-3

    monkeypatch.setattr(nearness.Nearness, "began", timed)
    monkeypatch.setattr(nearness, "NEAR_S", 2e-3)
    verified_by(server, "chunks")
    async with engine_over(server) as engine:
        for _ in range(2):
            assert await outcome(engine, server) is HEALS
            await engine.unload("ill")
    first, *others = server.gets(KEY)
    assert (first.start, first.end) == (0, 1)
    assert all(a.end > 1 for a in others), "once"
    assert tapped(server)


def test_a_far_store_is_looked_at_seldom() -> None:
    now, asked = [1000.0], []

    async def ask() -> None:
        asked.append(now[0])
        now[0] += 0.03
        if len(asked) == 4:
            raise StoreUnreachable("not just now")

    async def looks() -> None:
        found = nearness.Nearness(lambda: now[0])
        for _ in range(600):
            await found.look(ask)
            now[0] += 1.0
        assert not found.near
        found.began(1e-3)
        assert found.near
        await found.look(ask)

    asyncio.run(looks())
    times = [sum(t >= at for t in asked) for at in (1000, 1059, 1179, 1419, 1600)]
    assert times == [3 + 1 + 3 + 3, 1 + 3 + 3, 3 + 3, 3, 0]


def test_slow_answers_count_little_if_others_were_asked_for_with_them() -> None:
    found = nearness.Nearness()
    found.began(0.003, alone=False)
    for _ in range(40):
        found.began(0.05, alone=False)
    assert found.near
    for _ in range(1000):
        found.began(0.05, alone=False)
    assert not found.near, "it may have moved: look again"
    found.began(0.003)
    for _ in range(10):
        found.began(0.05)
    assert not found.near


async def test_a_connection_is_used_again(server, near) -> None:
    files = tiny_models.by_chunks(model_files(7))
    server.objects |= {f"small/1/{name}": data for name, data in files.items()}
    async with engine_over(server) as engine:
        for lap in range(4):
            assert await ask(engine, "small") == [7.0] * 4
            await engine.unload("small")
            if lap == 1:
                before = server.connections
        assert server.connections == before
    asked = server.gets("small/1/model.safetensors")
    assert [a.tapped for a in asked] == [False, True, True, True]


async def test_a_porter_has_one(server, monkeypatch) -> None:
    monkeypatch.setattr(nearness, "NEAR_S", nearness.NEAR_S)  # set back
    verified_by(server, "chunks")
    settings = Settings(
        store=f"s3://{BUCKET}", device="cpu", budget="64MiB", loader="process"
    )
    store = NearStore.open(settings.store)
    async with composed(settings, NullObserver(), store=store) as engine:
        await until_carried(engine)
        for _ in range(2):
            assert await outcome(engine, server) is HEALS
            await engine.unload("ill")
    assert len(tapped(server)) == 1


async def test_seaweedfs_takes_what_is_signed(
    seaweed_server, s3: str, near, monkeypatch
) -> None:
    """Below a prefix that a URL has to escape."""
    s3 += "/of a team, ü"
    files = tiny_models.by_chunks(model_files(7))
    await upload(s3, "m/1", files)
    with proxy(seaweed_server.endpoint) as counter:
        monkeypatch.setenv("AWS_ENDPOINT_URL", counter.endpoint)
        settings = Settings(store=s3, device="cpu", budget="64MiB")
        async with composed(settings, NullObserver()) as engine:
            for _ in range(2):
                assert await ask(engine, "m") == [7.0] * 4
                await engine.unload("m")
        passed = [p.path for p in counter.taken() if "safetensors" in p.path]
    assert ["X-Amz-Signature" in path for path in passed] == [False, True]


@pytest.mark.parametrize("told", ["nothing", "the authority", "not to look"])
async def test_over_tls(server, tmp_path, monkeypatch, told: str) -> None:
    """What a secret says about certificates counts here too."""
    key, certificate = tmp_path / "key", tmp_path / "certificate"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days",
               "2", "-subj", "/CN=store", "-addext", "subjectAltName=IP:127.0.0.1",
               "-keyout", key, "-out", certificate]  # fmt: skip
    try:
        await asyncio.to_thread(
            subprocess.run, command, check=True, capture_output=True
        )
    except OSError:
        pytest.skip("needs the openssl command")
    if told == "the authority":
        monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate))
    elif told == "not to look":
        monkeypatch.setenv("S3_VERIFY_SSL", "0")
    ours = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ours.load_cert_chain(certificate, key)
    listening = await asyncio.start_server(server._connected, "127.0.0.1", 0, ssl=ours)
    port = listening.sockets[0].getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"https://127.0.0.1:{port}")
    made = Store.open(f"s3://{BUCKET}").tap()
    async with listening:
        asking = dataclasses.replace(wish(server), url=await made.signed(KEY))
        drawing = asyncio.to_thread(drawn, made, asking)
        if told == "nothing":
            with pytest.raises(Dry, match="SSLCertVerificationError"):
                await drawing
        else:
            assert await drawing == server.objects[KEY][:1000]
        made.close()


async def test_a_store_under_another_roof_has_none(server, monkeypatch) -> None:
    """The way out is the operator's, or there is nothing to sign with."""
    url = f"s3://{BUCKET}"
    assert Store.open(url).tap() is not None
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    assert Store.open(url).tap() is None
    assert Store.open("memory://").tap() is None


@pytest.mark.parametrize("name", ["awsAnonymousCredential", "AWS_SKIP_SIGNATURE"])
async def test_nor_has_one_that_anybody_may_read(server, monkeypatch, name) -> None:
    """To sign, a key would be looked for where there is none."""
    monkeypatch.setenv(name, "true")
    assert Store.open(f"s3://{BUCKET}").tap() is None


# -- what goes wrong ------------------------------------------------------------------


BODIES = ("cut always", "reset always", "a flipped bit", "short", "stall", "overlong")
"""Faults that come with a body, which may be that of the second request."""


@pytest.mark.parametrize(
    ("case", "place"),
    [*((case, "start") for case in CASES), *((case, "middle") for case in BODIES)],
)
async def test_a_fault_that_the_tap_meets(
    server, near, monkeypatch, case: str, place: str
) -> None:
    """The answers are those that there are without one."""
    limit = SHORT if case in HANGING else GENEROUS
    fault, times, expected = CASES[case]
    expect = expected[list(PLACES).index(place)]
    async with known(server, limit) as engine:
        server.breaks(fault, *PLACES[place], times)
        await meets(engine, server, expect)
        assert tapped(server)


@pytest.mark.parametrize("place", ["start", "middle"])
async def test_a_redirect_leads_nowhere(server, near, place: str) -> None:
    async with known(server) as engine:
        server.breaks(faults.redirect("http://127.0.0.2:9/x"), *PLACES[place], 1)
        assert await outcome(engine, server) is HEALS
        assert tapped(server)


async def test_a_model_that_is_published_anew_dries_no_tap(server, near) -> None:
    """412 says what is wrong: the other way would say no more."""
    new = model_files(5, 2 * CHUNK + 12345)["model.safetensors"]
    async with known(server) as engine:
        server.objects[KEY] = new
        assert await outcome(engine, server) is not HEALS
        assert tapped(server)
        (made,) = near
        assert made.runs


@pytest.mark.parametrize("honest", [True, False])
@pytest.mark.parametrize("place", ["start", "middle"])
async def test_an_object_replaced_meanwhile(server, near, place, honest) -> None:
    key, start = PLACES[place]
    new = model_files(5, 2 * CHUNK + 12345)["model.safetensors"]
    async with known(server) as engine:
        server.breaks(faults.replaced(key, new, honest), key, start)
        assert await outcome(engine, server) is not HEALS
        assert tapped(server)
        assert await only_well_is_held(engine)


async def test_it_is_left_alone_for_a_while(server, near, monkeypatch) -> None:
    now = [0.0]
    monkeypatch.setattr(tap.time, "monotonic", lambda: now[0])
    made = Tap(None)
    for rest in (10, 20, 40):
        made.rest("status 403")
        made.rest("status 403")  # of another load that was under way
        now[0] += rest - 1
        assert not made.runs
        now[0] += 1
        assert made.runs
    made.ran()
    made.rest("status 403")
    now[0] += 10
    assert made.runs
    for _ in range(20):
        made.rest("status 403")
        now[0] += 3600
        assert made.runs


async def test_a_dry_tap_is_not_asked_again_at_once(server, near) -> None:
    async with known(server) as engine:
        server.breaks(faults.status("403 No"), *PLACES["start"], 1)
        for _ in range(2):
            assert await outcome(engine, server) is HEALS
            await engine.unload("ill")
    assert len(tapped(server)) <= len(spans(len(server.objects[KEY])))


async def test_nothing_is_told_of_the_url(server, near, monkeypatch) -> None:
    told = []
    monkeypatch.setattr(tap.log, "info", lambda event, **more: told.append(more))
    async with known(server) as engine:
        server.breaks(faults.garbage, *PLACES["start"])
        await outcome(engine, server)
    assert [set(more) for more in told] == [{"why", "s"}]
    assert told[0]["why"] == "BadStatusLine"


# -- a flow ---------------------------------------------------------------------------


@pytest.fixture
def made(server) -> Iterator[Tap]:
    async def sign(path: str) -> str:
        return f"{server.url}/{BUCKET}/{path}?x=y"

    made = Tap(sign)
    yield made
    made.close()


def wish(server: FaultServer, start: int = 0, nbytes: int = 1000) -> Wish:
    url = f"{server.url}/{BUCKET}/{KEY}?x=y"
    return Wish(url, start, start + nbytes, len(server.objects[KEY]), None)


def drawn(made: Tap, wanted: Wish) -> bytes:
    """A flow from its beginning to its end, in a thread."""
    flow, into = Flow(made), bytearray(wanted.end - wanted.start)
    try:
        flow.open(wanted)
        flow.fill(memoryview(into)[:10])
        flow.fill(memoryview(into)[10:])
    finally:
        flow.close()
    return bytes(into)


async def test_the_store_may_close_a_kept_connection(server, made) -> None:
    right = server.objects[KEY]
    assert await asyncio.to_thread(drawn, made, wish(server)) == right[:1000]
    assert server.connections == 1
    for writer in list(server._open.values()):
        writer.close()
        await writer.wait_closed()
    assert await asyncio.to_thread(drawn, made, wish(server, 7)) == right[7:1007]
    assert server.connections == 2


async def test_it_does_not_keep_what_is_old(server, made, monkeypatch) -> None:
    await asyncio.to_thread(drawn, made, wish(server))
    monkeypatch.setattr(tap, "IDLE_S", -1.0)
    await asyncio.to_thread(drawn, made, wish(server))
    assert server.connections == 2


async def test_it_keeps_a_few(server, made, monkeypatch) -> None:
    monkeypatch.setattr(tap, "KEPT", 2)
    flows = [Flow(made) for _ in range(5)]
    for flow in flows:
        await asyncio.to_thread(flow.open, wish(server))
        await asyncio.to_thread(flow.fill, memoryview(bytearray(1000)))
    for flow in flows:
        flow.close()
    assert len(made._idle) == 2


@pytest.mark.parametrize("fault", [faults.hang, faults.stall])
async def test_a_flow_is_cut_while_it_waits(server, made, monkeypatch, fault) -> None:
    """The test's time limit is the bound: no read ends by itself."""
    monkeypatch.setattr(tap, "SILENCE_S", 3600.0)
    server.breaks(fault, *PLACES["start"])
    flow = Flow(made)

    def draw() -> None:
        flow.open(wish(server))
        flow.fill(memoryview(bytearray(1000)))

    drawing = asyncio.create_task(asyncio.to_thread(draw))
    await struck(server, drawing)
    flow.cut()
    with pytest.raises(Dry):
        await drawing
    flow.close()
    assert not flow._tap._idle, "it is no good for another"


async def test_one_that_is_cut_before_asks_for_nothing(server, made) -> None:
    flow = Flow(made)
    flow.cut()
    with pytest.raises(Dry, match="called off"):
        await asyncio.to_thread(flow.open, wish(server))
    flow.close()
    assert not server.asked


async def test_a_load_that_hangs_in_it_is_called_off(server, near, monkeypatch) -> None:
    monkeypatch.setattr(tap, "SILENCE_S", 3600.0)
    async with known(server) as engine:
        server.breaks(faults.stall, *PLACES["middle"])
        asking = asyncio.create_task(ask(engine, "ill"))
        await struck(server, asking)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        while not await only_well_is_held(engine):  # noqa: ASYNC110
            await asyncio.sleep(0.01)  # the load is called off behind our back


# -- its ranges -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "size", [1, CHUNK, draught.ALONE, draught.ALONE + 1, 25 * CHUNK + 5]
)
def test_ranges_cover_a_file_once(size: int) -> None:
    made = spans(size)
    assert made[0][0] == 0
    assert made[-1][1] == size
    assert all(a[1] == b[0] for a, b in itertools.pairwise(made))
    assert all(start % CHUNK == 0 and start < end for start, end in made)
    assert len(made) == (1 if size <= draught.ALONE else 2)


async def test_what_is_not_urgent_is_left_to_the_other_way(server, near) -> None:
    """Its next chunk may have to wait for its turn, and its connection would wait."""
    async with known(server) as engine:
        ERRAND.set(Errand(urgent=False))
        await engine.load("well")
        ahead = asyncio.ensure_future(engine.load("ill", urgent=False))
        await ahead
    assert not tapped(server)


class Pours:
    """Stands for what pours: takes each chunk's bytes."""

    def __init__(self) -> None:
        self.came = b""

    def drawn(self, draw, start: int, end: int) -> None:
        into = bytearray(end - start)
        draw(memoryview(into))
        assert len(self.came) == start
        self.came += into


async def test_a_file_is_drawn_chunk_by_chunk(server, made) -> None:
    data = server.objects[KEY]
    server.objects["three"] = data
    file = FileRef("three", len(data), "")
    drawing = Draught(pours := Pours(), made, "three", file, None)
    with ThreadPoolExecutor(2) as threads:
        await drawing.pour(threads)
    assert pours.came == data
    assert drawing.etag == faults.etag_of(data)
    assert 0 < drawing.began_s < 60


async def test_one_that_drips_is_cut(server, made, monkeypatch) -> None:
    """No read of it is ever silent for long; the test's time limit is the bound."""
    monkeypatch.setattr(draught, "SILENCE_S", 0.2)
    server.breaks(faults.drip, KEY)
    file = FileRef(KEY, len(server.objects[KEY]), "")
    with ThreadPoolExecutor(2) as threads, pytest.raises(Dry):
        await Draught(Pours(), made, KEY, file, None).pour(threads)


async def test_what_waits_for_a_thread_is_not_drawn_from_a_dry_tap(
    server, made
) -> None:
    file = FileRef(KEY, len(server.objects[KEY]), "")
    made.rest("a test")
    with ThreadPoolExecutor(2) as threads, pytest.raises(Dry, match="rests"):
        await Draught(Pours(), made, KEY, file, None).pour(threads)
    assert not server.asked


@pytest.mark.parametrize(
    ("endpoint", "dialled"),
    [
        ("http://[fd00::5:80]/x", ("fd00::5:80", 80)),
        ("https://[fd00::1]/x", ("fd00::1", 443)),
        ("http://[::1]:9000/x", ("::1", 9000)),
        ("http://store/x", ("store", 80)),
    ],
)
def test_what_is_dialled(monkeypatch, endpoint, dialled) -> None:
    asked = []

    def connect(address, *rest):
        asked.append(address)
        raise OSError

    monkeypatch.setattr(socket, "create_connection", connect)
    with pytest.raises(OSError):  # noqa: PT011 - ours
        Tap(None).connection(urlsplit(endpoint))
    assert asked == [dialled]


@pytest.mark.parametrize(
    ("etag", "fits"),
    [
        ('"a-1"', True),
        ('W/"a"', True),
        ('"a\r\n b"', False),
        ('"\xfc"', False),
        ("a", False),
    ],
)
def test_an_etag_that_may_be_sent_back(etag: str, fits: bool) -> None:
    assert bool(tap.ETAG.fullmatch(etag)) == fits


async def test_what_ended_early_is_not_kept(server, made) -> None:
    server.breaks(faults.cut, KEY)
    flow = Flow(made)

    def draw() -> None:
        flow.open(wish(server))
        flow.fill(memoryview(bytearray(1000)))

    with pytest.raises(Dry, match="ended early"):
        await asyncio.to_thread(draw)
    flow.close()
    assert not made._idle


async def test_signing_is_not_waited_for_for_long(server, monkeypatch) -> None:
    monkeypatch.setattr(tap, "SIGNING_S", 0.01)

    async def never(path: str) -> str:
        return await asyncio.Future()

    with pytest.raises(Dry, match="TimeoutError"):
        await Tap(never).signed("x")


def test_a_wish_does_not_show_its_url() -> None:
    assert "SECRET" not in repr(Wish("http://store/x?signature=SECRET", 0, 1, 1, None))
