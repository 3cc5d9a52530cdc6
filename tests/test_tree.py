"""The tree of processes, with real ones: killed, stopped, hung and told to stop."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import struct
from pathlib import Path
from typing import ClassVar

import grpc
import httpx
import msgspec
import numpy as np
import psutil
import pytest

from runtime.config import Settings
from runtime.envoy.admin import Admin
from runtime.envoy.bootstrap import bootstrap
from runtime.envoy.stage import DESERTED
from runtime.link.memory import anonymous
from runtime.ports import CannotListen, Shared, listener
from runtime.tree import front, supervisor
from runtime.tree.control import (
    LARGEST,
    Beat,
    Begin,
    Control,
    Residents,
    Unfit,
    Up,
    first_of,
    fitting,
)
from runtime.tree.cores import Cores
from runtime.tree.lives import SHORT_S, TRUSTED, WAITS_S, Lives, reason_of
from runtime.tree.member import Member
from runtime.tree.ports import Ports
from runtime.tree.supervisor import Supervisor
from tests import tiny_models
from tests.server_process import (
    FRONTENDS,
    channel_to,
    request_for,
    serving,
    skip_without,
)

ONES = np.ones((1, 4), np.float32).tobytes()
MODELS = 12

# ---- what decides -------------------------------------------------------------------


def test_short_lives_wait_longer_and_longer() -> None:
    lives, now, waits = Lives(), 0.0, []
    for _ in range(12):
        lives.begin(now)
        now += SHORT_S / 2
        waits.append(lives.end(now, "crashed"))
    assert waits == sorted(waits)
    assert waits[0] == 0.0, "the first time may be chance"
    assert waits[-1] == WAITS_S[-1]
    assert not lives.trusting
    assert lives.begin(now) == 13
    assert lives.end(now + SHORT_S, "hung") == 0.0
    assert lives.trusting
    assert lives.ends == {"crashed": 12, "hung": 1}


def test_who_was_resident_is_believed_only_so_often() -> None:
    lives = Lives()
    for life in range(TRUSTED):
        assert lives.trusting, life
        lives.begin(0.0)
        lives.end(0.0, "crashed")
    assert not lives.trusting


@pytest.mark.parametrize(
    ("code", "killed_for", "reason"),
    [
        (-9, "", "crashed"),
        (1, "", "crashed"),
        (70, "", "device lost"),
        (71, "", "hung"),
        (-9, "hung", "hung"),
        (0, "", "left"),
    ],
)
def test_why_a_process_ended(code, killed_for, reason) -> None:
    assert reason_of(code, killed_for) == reason


def test_cores() -> None:
    cores = Cores.of(True, 2, [3, 4, 5, 6])
    assert cores.of_child("engine", 0) == {3, 4}
    assert [cores.of_child("front", n) for n in (0, 1)] == [{5}, {6}]
    for nobody in (Cores.of(True, 2, [0, 1]), Cores.of(False, 1, [0, 1])):
        assert nobody.of_child("engine", 0) is None
        assert nobody.of_child("front", 0) is None


class Fleeting:
    """A child that has ended as soon as it was started."""

    started: ClassVar[list] = []

    def __init__(self, role, heard, cores) -> None:
        self.started.append(cores)
        self.killed_for = ""
        self.alive = False
        self.ended = asyncio.get_running_loop().create_future()
        self.ended.set_result(1)

    def say(self, message, fds=()) -> None:
        """It hears nothing any more."""

    def kill(self, reason: str) -> None:
        self.killed_for = reason


async def test_a_replaced_front_end_has_the_cores_of_its_slot(monkeypatch) -> None:
    monkeypatch.setattr(supervisor, "Child", Fleeting)
    monkeypatch.setattr(Fleeting, "started", [])
    watching = supervising(frontends=2)
    watching._cores = Cores(frozenset({0}), [frozenset({1}), frozenset({2})])
    watching._served = True
    keeping = [asyncio.create_task(watching._keep(slot)) for slot in watching._slots]
    while len(Fleeting.started) < 4 and not any(map(asyncio.Task.done, keeping)):  # noqa: ASYNC110
        await asyncio.sleep(0)
    for task in keeping:
        task.cancel()
    ended = await asyncio.gather(*keeping, return_exceptions=True)
    assert {type(end) for end in ended} == {asyncio.CancelledError}
    assert Fleeting.started[:4] == [{1}, {2}, {1}, {2}]
    closed(watching)


@pytest.mark.parametrize(("stopping", "reason"), [(False, "unlinked"), (True, "")])
async def test_an_engine_without_links_may_leave_by_itself_at_the_end(
    monkeypatch, stopping, reason
) -> None:
    monkeypatch.setattr(supervisor, "UNLINKED_S", 0.0)
    watching = supervising(frontends=1)
    watching._engine = Fleeting("engine", None, None)
    watching._stopping = stopping
    await watching._unlinked(0)
    assert watching._engine.killed_for == reason
    closed(watching)


async def test_nobody_is_introduced_to_the_dead() -> None:
    """A descriptor that was closed with it may be another's by now."""
    watching = supervising(frontends=1)
    (slot,) = watching._slots
    engine, dead = (Fleeting(role, None, None) for role in ("engine", "front"))
    engine.up = dead.up = True
    watching._engine, slot.child = engine, dead
    told = []
    engine.say = lambda message, fds=(): told.append(message)
    watching._introduce(slot)
    assert told == []
    closed(watching)


@pytest.mark.parametrize(
    ("served", "whose", "over"),
    [(False, "front", True), (True, "front", False), (True, "engine", True)],
)
async def test_a_front_end_that_cannot_begin_later_ends_nobody_else(
    served, whose, over
) -> None:
    """Its successor may; a server without an engine is none."""
    watching = supervising(frontends=1)
    (slot,) = watching._slots
    engine, front = (Fleeting(role, None, None) for role in ("engine", "front"))
    engine.role, front.role = "engine", "front"
    watching._engine, slot.child, watching._served = engine, front, served
    child = engine if whose == "engine" else front
    watching._heard(child, Unfit("the port is taken"), ())
    assert watching._over.done() is over
    closed(watching)


def supervising(**settings) -> Supervisor:
    """A supervisor that has started nobody."""
    found = Settings(store="memory://", grpc_port=0, http_port=0, **settings)
    return Supervisor(found, {})


def closed(watching: Supervisor) -> None:
    watching._ports.close()


def test_a_message_takes_as_many_residents_as_fit() -> None:
    many = [("m" * 250, str(n)) for n in range(10_000)]
    some = fitting(many)
    assert some == many[: len(some)]
    assert len(some) > 300
    assert sum(len(n) + len(v) + 8 for n, v in some) < LARGEST
    assert fitting([("a", "1")]) == [("a", "1")]
    assert Residents(some).models == some


def test_a_shared_port_is_shared_with_ours_only() -> None:
    with contextlib.closing(Shared("127.0.0.1", 0)) as holder:
        ours = []
        for _ in range(2):
            ours.append(socket.socket())
            ours[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            ours[-1].bind(("127.0.0.1", holder.port))
            ours[-1].listen()
        for taking in (Shared, listener):
            with pytest.raises(CannotListen, match=f"cannot listen on .*{holder.port}"):
                taking("127.0.0.1", holder.port)
        for one in ours:
            one.close()


def test_a_second_server_is_refused_while_nobody_of_the_first_listens() -> None:
    """Its front ends are still importing, or one is being replaced."""
    with contextlib.closing(Shared("127.0.0.1", 0)) as holder:
        port = holder.port
        with pytest.raises(CannotListen, match="another hotset serves there"):
            Shared("127.0.0.1", port)
        with contextlib.closing(Shared("127.0.0.2", port)) as elsewhere:
            assert elsewhere.port == port
    with contextlib.closing(Shared("127.0.0.1", port)) as again:
        assert again.port == port


@pytest.mark.parametrize(
    ("flags", "taken", "handed"),
    [
        ({"frontend": "grpcio"}, {"grpc", "http"}, 1),
        ({"frontend": "envoy"}, {"grpc", "http"}, 0),
        # Which ports it has, only Envoy knows.
        ({"frontend": "envoy", "envoy_config": "edge.yaml"}, set(), 0),
    ],
)
def test_the_ports_of_a_server(flags, taken, handed) -> None:
    settings = Settings(host="::1", grpc_port=0, http_port=0, **flags)
    with contextlib.closing(Ports(settings)) as ports:
        assert set(ports.addresses) == taken
        assert ports.addresses == {
            name: f"[::1]:{ports.settings[f'{name}_port']}" for name in taken
        }
        assert len(ports.handed) == handed


async def test_the_first_message_can_be_looked_at_and_is_not_taken() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    begin, heard = Begin({"store": "memory://"}), asyncio.Future()
    with theirs, ours:
        file = anonymous("sent", 1)
        socket.send_fds(ours, [msgspec.msgpack.encode(begin)], [file])
        os.close(file)
        before = len(os.listdir("/proc/self/fd"))
        assert first_of(theirs) == begin
        assert len(os.listdir("/proc/self/fd")) == before
        control = Control(theirs, lambda *said: heard.set_result(said), lambda: None)
        message, (fd,) = await heard
        assert message == begin
        os.close(fd)
        control.close()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        ours.close()
        assert first_of(theirs) is None


async def test_a_front_end_that_drains_is_not_silent() -> None:
    """Or it would be taken for hung before its grace is over."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    heard: list = []
    control = Control(ours, lambda message, _: heard.append(message), lambda: None)
    member = Member(theirs)
    settings = Settings(store="memory://", grpc_port=0, predict_timeout=0.04)
    fds = [anonymous("requests", 1 << 16), listener("127.0.0.1", 0).detach()]
    running = asyncio.create_task(front.run(member, Begin({}), settings, fds))
    while Up() not in heard:  # noqa: ASYNC110
        await asyncio.sleep(0)
    member.told_to_stop.set()
    control.drain()
    heard.clear()
    await running
    control.drain()
    assert Beat() in heard
    member._control.close()
    control.close()


# ---- real processes -----------------------------------------------------------------


@pytest.fixture(params=["grpcio", "envoy"])
def frontend(request):
    """Those whose processes differ; zttp's are grpcio's but for who answers."""
    skip_without(request.param)
    return request.param


def slow_files() -> dict[str, bytes]:
    """y = x @ (w^200): half a minute and more, all of it inside torch."""
    import hashlib

    import torch
    from safetensors.torch import save

    data = save({"w": torch.eye(1500)})
    nodes = [
        {
            "name": f"n{i}",
            "op": "aten.linear.default",
            "args": [{"node": f"n{i - 1}"} if i else {"weight": "w"}, {"weight": "w"}],
        }
        for i in range(200)
    ]
    nodes += [
        {
            "name": f"cut{i}",
            "op": "aten.slice.Tensor",
            "args": [{"node": ["n199", "cut0"][i]}, i, 0, 4],
        }
        for i in range(2)
    ]
    nodes.append(
        {
            "name": "y",
            "op": "aten.linear.default",
            "args": [{"input": "x"}, {"node": "cut1"}],
        }
    )
    graph = json.dumps(
        {
            "format": 1,
            "weights": [{"name": "w", "dtype": "float32", "shape": [1500, 1500]}],
            "inputs": ["x"],
            "nodes": nodes,
            "outputs": [{"name": "y", "value": {"node": "y"}}],
        }
    ).encode()
    manifest = json.loads(tiny_models.files()["model.json"])
    for key, name, made in (
        ("graph", "graph.json", graph),
        ("weights", "model.safetensors", data),
    ):
        digest = hashlib.sha256(made).hexdigest()
        manifest[key] = {"file": name, "size": len(made), "sha256": digest}
    return {
        "graph.json": graph,
        "model.safetensors": data,
        "model.json": json.dumps(manifest).encode(),
    }


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    for index in range(MODELS):
        tiny_models.linear(folder, f"m{index}", index, extra=1000)
    tiny_models.write(folder / "slow" / "1", slow_files())
    return folder


ROLES = {"engine": {"engine"}, "front": {"front", "envoy"}}
"""What is on a child's command line; an Envoy's begins with its path."""


class Tree:
    """The processes of a server, found as an operator would find them."""

    def __init__(self, server) -> None:
        self.server = server
        self.root = psutil.Process(server.process.pid)

    def of(self, role: str) -> list[psutil.Process]:
        """Its children of a role, the oldest first."""
        found = []
        for child in self.root.children():
            with contextlib.suppress(psutil.Error):
                words = {word.rpartition("/")[2] for word in child.cmdline()}
                if words & ROLES[role]:
                    found.append(child)
        return sorted(found, key=lambda p: (p.create_time(), p.pid))

    def said(self, event: str) -> list[dict]:
        """Lines of the log."""
        lines = []
        for line in self.server.log.read_text().splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                lines.append(json.loads(line))
        return [line for line in lines if line.get("event") == event]

    async def until_listed(self, count: int) -> None:
        """The supervisor knows that so many are resident."""
        while not any(  # noqa: ASYNC110
            line["models"] == count for line in self.said("who is resident")
        ):
            await asyncio.sleep(0.05)

    async def until_said(self, event: str, count: int = 1) -> None:
        while len(self.said(event)) < count:  # noqa: ASYNC110 - a log tells nobody
            await asyncio.sleep(0.05)


def gone(process: psutil.Process) -> bool:
    """Or nobody's: who was left to an init that reaps nobody stays a zombie."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


async def all_gone(processes: list[psutil.Process]) -> None:
    async with asyncio.timeout(10):
        while not all(map(gone, processes)):  # noqa: ASYNC110
            await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def tree_over(store: Path, log: Path, *flags: str):
    async with serving(str(store), log, "--frontends", "1", *flags) as server:
        tree = Tree(server)
        children = tree.root.children()
        yield tree
        if server.process.poll() is None:
            assert server.stop() == 0
        await all_gone(children)


class Clients:
    """Callers who check every answer. `errors`: codes of those that got none."""

    def __init__(self, address: str, count: int = 8) -> None:
        self._address = address
        self._stopped = False
        self.answers = 0
        self.wrong: list[str] = []
        self.errors: list[grpc.StatusCode] = []
        self._tasks = [asyncio.create_task(self._ask(n)) for n in range(count)]

    async def _ask(self, index: int) -> None:
        async with channel_to(self._address) as stub:
            while not self._stopped:
                index = (index + 5) % MODELS
                try:
                    response = await stub.ModelInfer(
                        request_for(f"m{index}", ONES), timeout=30
                    )
                except grpc.aio.AioRpcError as error:
                    self.errors.append(error.code())
                    return
                (value,) = struct.unpack_from("<f", response.raw_output_contents[0])
                if value != index:
                    self.wrong.append(f"m{index}: {value}")
                self.answers += 1

    async def answered(self, more: int) -> None:
        """Return when so many more have been answered."""
        goal = self.answers + more
        while self.answers < goal and not self.errors:  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    async def stop(self) -> None:
        self._stopped = True
        await asyncio.gather(*self._tasks)


@pytest.mark.process
@pytest.mark.timeout(120)
async def test_an_engine_that_is_killed_costs_nobody_an_answer(
    store, tmp_path, frontend
) -> None:
    flags = ("--frontend", frontend, "--log-level", "debug")
    async with tree_over(store, tmp_path / "log", *flags) as tree:
        clients = Clients(tree.server.grpc)
        await clients.answered(200)
        await tree.until_listed(MODELS)
        for kill in (1, 2):
            tree.of("engine")[0].kill()
            await tree.until_said("the engine is replaced", kill)
            await clients.answered(200)
        await clients.stop()
        assert (clients.wrong, clients.errors) == ([], [])
        await tree.until_said("prewarm ends", 2)
        snapshot = await tree.server.status()
        assert len(snapshot["residents"]) == MODELS
        assert 'hotset_engine_restarts_total{reason="crashed"} 2.0' in (
            await tree.server.metrics()
        )
        assert 'hotset_requests_total{outcome="ok"' in await tree.server.metrics()
    # Measured once, whatever was found: the next engine chooses as the first one did.
    assert (tmp_path / "log").read_text().count("linear layers run ") == 1


@pytest.mark.process
@pytest.mark.timeout(120)
async def test_the_host_tier_outlives_its_engine(store, tmp_path) -> None:
    size = (store / "m1" / "1" / "model.safetensors").stat().st_size
    flags = ("--budget", str(4 * size + 2000), "--host-cache", "1MiB")
    flags += ("--no-anti-thrash", "--policy", "lru")
    async with tree_over(store, tmp_path / "log", *flags) as tree:
        clients = Clients(tree.server.grpc)
        await clients.answered(300)
        tree.of("engine")[0].kill()
        await tree.until_said("the engine is replaced")
        await clients.answered(300)
        await clients.stop()
        assert (clients.wrong, clients.errors) == ([], [])
        loads = (await tree.server.status())["tiers"]["loads"]
        assert loads["host"] > MODELS
        assert loads.get("store", 0) <= 4, "who was on the device and nowhere else"


@pytest.mark.process
@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("role", "said"),
    [("engine", "the engine is replaced"), ("front", "a front end is replaced")],
)
async def test_who_stops_is_replaced(store, tmp_path, frontend, role, said) -> None:
    flags = ("--frontend", frontend, "--predict-timeout", "1.5")
    async with tree_over(store, tmp_path / "log", *flags) as tree:
        clients = Clients(tree.server.grpc)
        await clients.answered(50)
        tree.of(role)[0].send_signal(signal.SIGSTOP)
        if role == "engine":
            async with channel_to(tree.server.grpc) as stub:
                with pytest.raises(grpc.aio.AioRpcError, match="DEADLINE_EXCEEDED"):
                    await stub.ModelInfer(request_for("m1", ONES), timeout=0.3)
        await tree.until_said(said)
        if role == "engine":
            await clients.answered(50)
        await clients.stop()
        assert clients.wrong == []
        allowed = {grpc.StatusCode.UNAVAILABLE} if role == "front" else set()
        assert set(clients.errors) <= allowed
        assert tree.said(said)[0]["reason"] == "hung"
        await tree.until_said("the server listens", 2 if role == "front" else 1)
        clients = Clients(tree.server.grpc)
        await clients.answered(50)
        await clients.stop()
        assert (clients.wrong, clients.errors) == ([], [])


@pytest.mark.process
@pytest.mark.timeout(120)
async def test_a_forward_that_hangs_is_refused_and_nobody_else(store, tmp_path) -> None:
    """It ends three engines, its own and the two that ran it to be sure."""
    async with tree_over(store, tmp_path / "log", "--predict-timeout", "2") as tree:
        clients = Clients(tree.server.grpc, 2)
        await clients.answered(20)
        async with channel_to(tree.server.grpc) as stub:
            with pytest.raises(grpc.aio.AioRpcError, match="the engine ended twice"):
                await stub.ModelInfer(request_for("slow", ONES), timeout=60)
        await clients.answered(20)
        await clients.stop()
        assert (clients.wrong, clients.errors) == ([], [])
        reasons = [line["reason"] for line in tree.said("the engine is replaced")]
        assert reasons == ["hung"] * 3


def descriptors(process: psutil.Process) -> list[str]:
    """What it has open, but for what comes and goes by itself."""
    found = []
    for fd in os.listdir(f"/proc/{process.pid}/fd"):
        with contextlib.suppress(OSError):
            found.append(os.readlink(f"/proc/{process.pid}/fd/{fd}").split(":")[0])
    return sorted(found)


def shared_memory(process: psutil.Process) -> list[str]:
    maps = Path(f"/proc/{process.pid}/maps").read_text().splitlines()
    return sorted(line.split("memfd:")[1] for line in maps if "memfd:" in line)


@pytest.mark.process
@pytest.mark.timeout(120)
async def test_a_front_end_that_is_killed_leaves_nothing_behind(
    store, tmp_path, frontend, monkeypatch
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    flags = ("--frontend", frontend)
    async with tree_over(store, tmp_path / "log", *flags) as tree:
        engine = tree.of("engine")[0]
        clients = Clients(tree.server.grpc)
        await clients.answered(50)
        await clients.stop()
        before = descriptors(engine), shared_memory(engine), descriptors(tree.root)
        folders = len(list(temporary.iterdir()))
        assert folders == (frontend == "envoy")
        for kill in (1, 2):
            clients = Clients(tree.server.grpc)
            await clients.answered(20)
            tree.of("front")[0].kill()
            await tree.until_said("a front end is replaced", kill)
            await clients.stop()
            assert set(clients.errors) <= {grpc.StatusCode.UNAVAILABLE}
            await tree.until_said("the server listens", 1 + kill)
        clients = Clients(tree.server.grpc)
        await clients.answered(50)
        await clients.stop()
        assert (clients.wrong, clients.errors) == ([], [])
        assert tree.of("engine")[0] == engine, "it need not know"
        after = descriptors(engine), shared_memory(engine), descriptors(tree.root)
        assert after == before
        assert len(list(temporary.iterdir())) == folders
    assert list(temporary.iterdir()) == []


@pytest.mark.process
@pytest.mark.timeout(120)
@pytest.mark.parametrize("frontend", FRONTENDS, indirect=True)
async def test_sigterm_under_load_loses_nothing(store, tmp_path, frontend) -> None:
    flags = ("--frontend", frontend)
    async with tree_over(store, tmp_path / "log", *flags) as tree:
        clients = Clients(tree.server.grpc)
        await clients.answered(100)
        tree.server.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(tree.server.process.wait, 40) == 0
        await clients.stop()
        assert clients.wrong == []
        assert set(clients.errors) == {grpc.StatusCode.UNAVAILABLE}
        (drained,) = tree.said("drained")
        assert drained["held"] == 0


@pytest.mark.process
@pytest.mark.timeout(120)
async def test_nobody_outlives_the_supervisor(store, tmp_path, frontend) -> None:
    flags = ("--frontend", frontend)
    async with tree_over(store, tmp_path / "log", *flags) as tree:
        children = tree.root.children()
        assert len(children) >= 2
        tree.server.process.kill()
        await all_gone(children)


@pytest.mark.process
@pytest.mark.timeout(120)
async def test_a_second_signal_is_the_end(store, tmp_path, frontend) -> None:
    flags = ("--frontend", frontend)
    async with tree_over(store, tmp_path / "log", *flags) as tree:
        tree.of("front")[0].send_signal(signal.SIGSTOP)  # it will not leave by itself
        tree.server.process.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.5)  # two signals at once are one
        tree.server.process.send_signal(signal.SIGTERM)
        code = await asyncio.to_thread(tree.server.process.wait, 10)
        assert code == -signal.SIGTERM


@pytest.mark.process
@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--device", "cuda:77"), "--device cuda:77"),
        (
            ("--frontend", "envoy", "--frontends", "2", "--envoy-config", "edge.yaml"),
            "--envoy-config works with --frontends 1",
        ),
    ],
)
async def test_what_cannot_be_served_is_said(store, tmp_path, flags, said) -> None:
    with pytest.raises(AssertionError) as caught:
        async with serving(
            str(store), tmp_path / "log", "--frontends", "1", *flags
        ) as server:
            server.stop()
    assert said in " ".join(str(caught.value).split())


@pytest.mark.process
@pytest.mark.timeout(120)
async def test_a_second_server_on_the_same_port_says_so(
    store, tmp_path, frontend
) -> None:
    flags = ("--frontend", frontend)
    async with tree_over(store, tmp_path / "first", *flags) as tree:
        port = tree.server.grpc.rpartition(":")[2]
        with pytest.raises(AssertionError, match="is another server there already"):
            async with serving(
                str(store),
                tmp_path / "log",
                *("--grpc-port", port, "--frontends", "1", *flags),
            ):
                pass


# ---- Envoy's own --------------------------------------------------------------------


@pytest.mark.process
@pytest.mark.timeout(120)
async def test_both_ports_of_an_envoy_outlive_an_engine(store, tmp_path) -> None:
    """HTTP and gRPC on either; who waits while there is no engine is answered."""
    skip_without("envoy")
    flags = ("--frontend", "envoy", "--predict-timeout", "1.5")
    data = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1.0] * 4}
    async with tree_over(store, tmp_path / "log", *flags) as tree:
        for address in (tree.server.grpc, tree.server.http):
            engine = tree.of("engine")[0]
            url = f"http://{address}/v2/models/m7/infer"
            async with (
                channel_to(address) as stub,
                httpx.AsyncClient(timeout=60) as client,
            ):
                for wait in (False, True):
                    if wait:
                        engine.send_signal(signal.SIGSTOP)
                    said, answer = await asyncio.gather(
                        client.post(url, json={"inputs": [data]}),
                        stub.ModelInfer(request_for("m7", ONES), timeout=60),
                    )
                    assert said.json()["outputs"][0]["data"][0] == 7.0
                    (value,) = struct.unpack_from("<f", answer.raw_output_contents[0])
                    assert value == 7.0
        reasons = [line["reason"] for line in tree.said("the engine is replaced")]
        assert reasons == ["hung"] * 2
        assert (await tree.server.status())["ready"]


@pytest.mark.process
@pytest.mark.timeout(120)
async def test_an_envoy_that_ends_by_itself_leaves_the_engine_as_it_was(
    store, tmp_path, monkeypatch
) -> None:
    """In order, or killed: another takes its place, and no model has to come again."""
    skip_without("envoy")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    async with tree_over(store, tmp_path / "log", "--frontend", "envoy") as tree:
        engine = tree.of("engine")[0]
        for end in (1, 2, 3):
            clients = Clients(tree.server.grpc)
            await clients.answered(50)
            await clients.stop()
            assert (clients.wrong, clients.errors) == ([], [])
            snapshot = await tree.server.status()
            assert (snapshot["loads"], len(snapshot["residents"])) == (MODELS, MODELS)
            assert tree.of("engine")[0] == engine
            (envoy,) = tree.of("front")
            if end == 3:
                envoy.kill()
            else:
                (folder,) = temporary.iterdir()
                await Admin(str(folder / "admin")).quit()
            await tree.until_said("a front end is replaced", end)
            await tree.until_said("the server listens", 1 + end)
            assert gone(envoy)
        codes = [line["code"] for line in tree.said("a front end is replaced")]
        assert codes == [DESERTED, DESERTED, -signal.SIGKILL]
        assert len(tree.said("Envoy ended by itself")) == 2
        assert tree.said("drained") == []
    assert len(tree.said("drained")) == 1
    assert tree.said("the engine is replaced") == []
    assert list(temporary.iterdir()) == []


@pytest.mark.process
@pytest.mark.timeout(120)
async def test_several_envoys_share_the_ports(store, tmp_path) -> None:
    skip_without("envoy")
    flags = ("--frontend", "envoy", "--frontends", "2")
    async with tree_over(store, tmp_path / "log", *flags) as tree:
        ports = {
            int(address.rpartition(":")[2])
            for address in (tree.server.grpc, tree.server.http)
        }
        fronts = tree.of("front")
        assert [local_ports(one, psutil.CONN_LISTEN) for one in fronts] == [ports] * 2
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(32):  # the kernel deals them out by their ports
                async with asyncio.timeout(10):
                    client = httpx.AsyncClient(base_url=f"http://{tree.server.http}")
                    await stack.enter_async_context(client)
                    assert (await client.get("/v2/health/ready")).status_code == 200
            assert all(local_ports(one, psutil.CONN_ESTABLISHED) for one in fronts)
        clients = Clients(tree.server.grpc)
        await clients.answered(100)
        tree.of("engine")[0].kill()
        await tree.until_said("the engine is replaced")
        await clients.answered(100)
        await clients.stop()
        assert (clients.wrong, clients.errors) == ([], [])


def local_ports(process: psutil.Process, status: str) -> set[int]:
    return {one.laddr.port for one in process.net_connections() if one.status == status}


@pytest.mark.process
@pytest.mark.timeout(120)
async def test_an_envoy_of_the_operators_says_where_it_listens(store, tmp_path) -> None:
    skip_without("envoy")
    path = tmp_path / "envoy.json"
    path.write_text(json.dumps(bootstrap("127.0.0.1", 0, 0)))
    flags = ("--frontend", "envoy", "--envoy-config", str(path))
    async with tree_over(store, tmp_path / "log", *flags) as tree:
        (envoy,) = tree.of("front")
        ports = {
            int(address.rpartition(":")[2])
            for address in (tree.server.grpc, tree.server.http)
        }
        assert local_ports(envoy, psutil.CONN_LISTEN) == ports
        assert len(ports) == 2
        async with channel_to(tree.server.grpc) as stub:
            await stub.ModelInfer(request_for("m7", ONES), timeout=30)
