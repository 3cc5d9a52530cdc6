"""A folder as a store: its files, read plainly, and nothing left open."""

import asyncio
import gc
import os
import threading
from contextlib import aclosing
from pathlib import Path

import pytest

from loader import folder as folder_module
from loader.errors import StoreUnreachable
from loader.folder import Folder, LocalFile
from loader.part import PIECE
from loader.store import Changed, Missing, Store


def opened() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path))


async def taken(store: Store, path: str, start: int, end: int, etag=None) -> bytes:
    part = await store.part(path, start, end, etag)
    async with aclosing(part.pieces) as pieces:
        return b"".join([bytes(piece) async for piece in pieces])


async def test_ranges_come_in_pieces_and_whole(store: Store, tmp_path: Path) -> None:
    data = os.urandom(PIECE * 2 + 77)
    (tmp_path / "w").write_bytes(data)
    before = opened()
    assert await taken(store, "w", 0, len(data)) == data
    assert await taken(store, "w", 5, PIECE + 9) == data[5 : PIECE + 9]
    assert await taken(store, "w", 7, 7) == b""
    part = await store.part("w", 0, 9)
    assert part.size == len(data)
    await part.pieces.aclose()
    assert opened() == before


async def test_another_file_of_the_same_name_is_seen(store: Store, tmp_path) -> None:
    (tmp_path / "w").write_bytes(b"0123456789")
    etag = (await store.part("w", 0, 1)).etag
    assert await taken(store, "w", 4, 10, etag) == b"456789"
    (tmp_path / "new").write_bytes(b"abcdefghij")
    os.replace(tmp_path / "new", tmp_path / "w")
    before = opened()
    with pytest.raises(Changed):
        await store.part("w", 4, 10, etag)
    assert opened() == before


async def test_a_part_that_nobody_takes_is_closed_with_its_last_reference(
    store: Store, tmp_path
) -> None:
    (tmp_path / "w").write_bytes(b"x" * 100)
    before = opened()
    part = await store.part("w", 0, 100)
    assert opened() != before
    del part
    await asyncio.sleep(0)  # the loop's own last word on the thread that opened it
    gc.collect()
    assert opened() == before


async def test_a_file_that_grows_is_as_it_was_when_it_was_opened(
    store: Store, tmp_path
) -> None:
    (tmp_path / "w").write_bytes(b"x" * 10)
    part = await store.part("w", 0, 20)
    with (tmp_path / "w").open("ab") as file:
        file.write(b"y" * 10)
    async with aclosing(part.pieces) as pieces:
        assert b"".join([bytes(piece) async for piece in pieces]) == b"x" * 10
    assert part.size == 10


async def test_a_file_that_is_cut_while_it_is_read_gives_what_there_is(
    store: Store, tmp_path
) -> None:
    (tmp_path / "w").write_bytes(b"x" * (PIECE + 50))
    part = await store.part("w", 0, PIECE + 50)
    os.truncate(tmp_path / "w", 10)
    async with aclosing(part.pieces) as pieces:
        assert sum([len(piece) async for piece in pieces]) == 10


@pytest.mark.parametrize("path", ["no", "no/w", "w/below", "../outside", "fifo", "out"])
async def test_what_is_no_file_of_the_folder_is_missing(tmp_path, path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "w").write_bytes(b"x")
    (tmp_path / "outside").write_bytes(b"x")
    os.mkfifo(inside / "fifo")
    (inside / "out").symlink_to(tmp_path / "outside")
    store, before = Store.open(str(inside)), opened()
    with pytest.raises(Missing):
        await store.part(path, 0, 1)
    with pytest.raises(Missing):
        await store.small(path)
    assert opened() == before


async def test_a_disk_that_fails_is_a_store_that_cannot_be_reached(
    store: Store, tmp_path, monkeypatch
) -> None:
    def fails(self, at: int, nbytes: int) -> bytes:
        raise OSError(5, "Input/output error", "/secret/path")

    (tmp_path / "w").write_bytes(b"x")
    monkeypatch.setattr(LocalFile, "read", fails)
    with pytest.raises(StoreUnreachable) as caught:
        await taken(store, "w", 0, 1)
    assert "secret" not in str(caught.value)
    with pytest.raises(StoreUnreachable):
        await store.small("w")


async def test_who_leaves_while_a_file_is_opened_leaves_nothing_open(
    tmp_path, monkeypatch
) -> None:
    (tmp_path / "w").write_bytes(b"x")
    begun, go_on, find = threading.Event(), threading.Event(), folder_module.plain_file

    def slow(folder: Path, path: str) -> Path:
        begun.set()
        go_on.wait(5)
        return find(folder, path)

    monkeypatch.setattr(folder_module, "plain_file", slow)
    before = opened()
    task = asyncio.create_task(Folder(tmp_path).part("w", 0, 1, None))
    await asyncio.to_thread(begun.wait, 5)
    task.cancel()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert opened() == before


async def test_who_waits_for_a_small_file_may_leave_before_its_thread(
    store: Store, tmp_path, monkeypatch
) -> None:
    """A manifest on a network's file system that hangs keeps nobody."""
    begun, go_on, find = threading.Event(), threading.Event(), folder_module.plain_file

    def hangs(folder: Path, path: str) -> Path:
        begun.set()
        go_on.wait(10)
        return find(folder, path)

    (tmp_path / "m.json").write_bytes(b"{}")
    monkeypatch.setattr(folder_module, "plain_file", hangs)
    task = asyncio.create_task(store.small("m.json"))
    await asyncio.to_thread(begun.wait, 5)
    task.cancel()
    try:
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not go_on.is_set(), "its thread has not ended"
    finally:
        go_on.set()


async def test_a_read_that_gives_less_goes_on(
    store: Store, tmp_path, monkeypatch
) -> None:
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, n, at: pread(fd, min(n, 3), at))
    (tmp_path / "w").write_bytes(b"0123456789")
    assert await store.small("w") == b"0123456789"
    assert await taken(store, "w", 1, 9) == b"12345678"
