"""The disk tier alone: real files, real failures."""

import fcntl
import hashlib
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from loader import spool as spool_module
from loader.spool import Spool
from loader.spool_files import PART, write_whole


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Owner:
    """Makes spools over one folder and ends them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made: list[Spool] = []

    def __call__(self, capacity: int = 1 << 30) -> Spool:
        spool = Spool(self.folder, capacity)
        self.made.append(spool)
        spool.flush()
        return spool


@pytest.fixture
def owner(tmp_path: Path):
    made = Owner(tmp_path / "deep" / "cache")
    yield made
    for spool in made.made:
        spool.close()


def put(spool: Spool, data: bytes) -> str:
    spool.put(digest_of(data), [memoryview(data[:3]), memoryview(data[3:])])
    spool.flush()
    return digest_of(data)


def read(spool: Spool, data: bytes) -> bytes | None:
    return spool.read(digest_of(data), len(data))


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_what_is_put_is_read_and_outlives_the_process(owner: Owner) -> None:
    spool, data = owner(), b"some bytes"
    assert read(spool, data) is None
    put(spool, data)
    assert read(spool, data) == data
    assert read(owner(), data) == data
    tier = spool.tier()
    assert (tier.held, tier.entries, tier.hits, tier.misses) == (10, 1, 1, 1)
    assert files(owner.folder) == {digest_of(data)}
    assert not spool.wants(digest_of(data), 10), "it is there already"


@pytest.mark.parametrize("step", [1, 4, 100])
def test_no_write_is_larger_than_a_step(tmp_path: Path, monkeypatch, step: int) -> None:
    asked: list[int] = []
    write = os.write

    def noted(fd: int, data: memoryview) -> int:
        asked.append(len(data))
        return write(fd, data[:3])  # a kernel may take less

    monkeypatch.setattr("loader.spool_files.os.write", noted)
    write_whole(tmp_path / "a", [memoryview(b"some "), memoryview(b"bytes")], step)
    assert (tmp_path / "a").read_bytes() == b"some bytes"
    assert max(asked) == min(step, 5)
    assert files(tmp_path) == {"a"}


def test_the_least_recently_used_goes_also_after_a_restart(owner: Owner) -> None:
    spool = owner(30)
    old, middle, new, last = (bytes([n]) * 10 for n in range(4))
    for age, data in enumerate((old, middle, new)):
        put(spool, data)
        path = owner.folder / digest_of(data)
        os.utime(path, (time.time() - 100 + age,) * 2)
    assert read(spool, old) == old  # used now, and its file says so
    put(spool, last)
    assert [read(spool, data) for data in (old, middle, new, last)] == [
        old, None, new, last,
    ]  # fmt: skip
    again = owner(20)
    put(again, b"x" * 10)
    assert len(files(owner.folder)) == 2
    assert again.tier().held == 20
    assert not again.wants("0" * 64, 21)


def test_parts_of_the_dead_are_swept_parts_of_the_living_stay(owner: Owner) -> None:
    owner()
    for name in ("dead", "living"):
        (owner.folder / f"{'0' * 64}.{name}{PART}").write_bytes(b"half")
    (owner.folder / "README").write_bytes(b"somebody's")
    with (owner.folder / f"{'0' * 64}.living{PART}").open() as writing:
        fcntl.flock(writing, fcntl.LOCK_EX)
        owner()
        assert files(owner.folder) == {f"{'0' * 64}.living{PART}", "README"}


@pytest.mark.process
def test_a_killed_writer_leaves_nothing_under_the_name(owner: Owner) -> None:
    owner()
    code = textwrap.dedent(
        """
        import os, signal, sys
        from pathlib import Path
        from loader.spool_files import write_whole

        def parts():
            yield memoryview(b"half")
            os.kill(os.getpid(), signal.SIGKILL)

        write_whole(Path(sys.argv[1]), parts())
        """
    )
    path = owner.folder / ("a" * 64)
    ended = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert len(files(owner.folder)) == 1
    assert owner().tier().entries == 0
    assert files(owner.folder) == set()


def test_two_servers_share_a_folder(owner: Owner) -> None:
    one, two, data = owner(), owner(), b"shared"
    put(one, data)
    assert read(two, data) == data, "found although it was never told"
    put(two, data)
    one.discard(digest_of(data))
    assert read(two, data) is None
    assert two.tier().held == 0
    put(two, data)
    assert read(one, data) == data


def test_the_limit_holds_for_what_others_wrote_too(owner: Owner, monkeypatch) -> None:
    monkeypatch.setattr(spool_module, "RESCAN_S", 0.0)
    one, two = owner(40), owner(40)
    for n in range(8):
        put(one if n % 2 else two, bytes([n]) * 10)
    sizes = [path.stat().st_size for path in owner.folder.iterdir()]
    assert sum(sizes) <= 50, "each may be ahead of the other by one file"


def test_ten_thousand_files_do_not_hold_up_the_start(owner: Owner) -> None:
    owner.folder.mkdir(parents=True)
    for n in range(10_000):
        (owner.folder / f"{n:064x}").touch()
    spool = Spool(owner.folder, 1 << 30)
    owner.made.append(spool)
    # Found at once, listed or not: the name is all it takes.
    assert spool.read(f"{9999:064x}", 0) == b""
    spool.flush()
    assert spool.tier().entries == 10_000


def test_a_file_of_the_wrong_size_and_a_link_are_not_read(owner: Owner) -> None:
    spool, data = owner(), b"right"
    put(spool, data)
    path = owner.folder / digest_of(data)
    path.write_bytes(b"longer than right")
    assert read(spool, data) is None
    path.unlink()
    secret = owner.folder.parent / "secret"
    secret.write_bytes(b"right")
    path.symlink_to(secret)
    assert read(spool, data) is None
    assert spool.tier().failures == 1


def test_a_wrong_size_costs_no_good_file_and_a_bad_one_is_written_anew(
    owner: Owner,
) -> None:
    spool, data = owner(), b"right"
    put(spool, data)
    assert spool.open(digest_of(data), 4) == -1
    assert read(spool, data) == data, "the manifest lied, not the file"
    (owner.folder / digest_of(data)).write_bytes(b"cut")
    assert read(spool, data) is None
    assert spool.wants(digest_of(data), len(data))
    put(spool, data)
    assert read(spool, data) == data
    assert spool.tier().held == len(data)


def test_a_full_disk_pauses_the_writing_and_nothing_else(
    owner: Owner, monkeypatch
) -> None:
    """A real refusal of the kernel's, by a limit on the size of files."""
    spool, before = owner(), b"before"
    put(spool, before)
    large = bytes(1 << 20)
    was = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, was[1]))
    try:
        put(spool, large)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, was)
        signal.signal(signal.SIGXFSZ, ignored)
    assert files(owner.folder) == {digest_of(before)}, "no part stays behind"
    tier = spool.tier()
    assert (tier.up, tier.failures) == (False, 1)
    assert not spool.wants(digest_of(large), len(large))
    assert read(spool, before) == before
    clock = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: clock() + spool_module.PAUSE_S)
    assert spool.tier().up
    put(spool, large)
    assert read(spool, large) == large


@pytest.mark.parametrize("place", ["file", "proc"])
def test_a_folder_that_cannot_be_is_no_tier_and_no_failure(
    tmp_path: Path, place: str
) -> None:
    (tmp_path / "file").write_bytes(b"")
    folder = {"file": tmp_path / "file" / "x", "proc": Path("/proc/no/such")}[place]
    spool = Spool(folder, 1 << 20)
    try:
        spool.flush()
        assert not spool.tier().up
        assert not spool.wants(digest_of(b"x"), 1)
        put(spool, b"x")
        assert read(spool, b"x") is None
    finally:
        spool.close()


def test_no_more_waits_to_be_written_than_may(owner: Owner, monkeypatch) -> None:
    monkeypatch.setattr(spool_module, "PENDING", 100)
    spool = owner()
    assert spool.wants("0" * 64, 100)
    assert not spool.wants("0" * 64, 101)
    spool._pending = 60
    assert not spool.wants("0" * 64, 41)
