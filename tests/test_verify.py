"""Digests while bytes land: in any order, and never ready before all are right."""

import hashlib
import random

import pytest

from loader.digest import SMALLEST, Chunks, FileRef, chunked
from loader.errors import ArtifactRefused
from loader.verify import Damaged, check

DATA = random.Random(7).randbytes(2 * SMALLEST + 12345)
STEP = SMALLEST // 4


def steps(data: bytes) -> list[tuple[int, memoryview]]:
    view = memoryview(data)
    return [(at, view[at : at + STEP]) for at in range(0, len(data), STEP)]


def pour(found, data: bytes, first: int = 0) -> None:
    for at, step in steps(data):
        if at >= first:
            found.update(at, step)


def by_chunks(data: bytes = DATA) -> FileRef:
    return FileRef("w", len(data), "0" * 64, chunked(data, SMALLEST))


def test_chunks_come_in_any_order_and_side_by_side() -> None:
    found = check(by_chunks())
    first, second, third = (
        [step for step in steps(DATA) if step[0] // SMALLEST == index]
        for index in range(3)
    )
    for step in third:
        found.update(*step)
    for left, right in zip(second, first, strict=True):
        found.update(*left)
        found.update(*right)
    found.finish()


def test_a_whole_file_may_begin_anew() -> None:
    """Half of it was in the page cache, and then it was not."""
    found = check(FileRef("w", len(DATA), hashlib.sha256(DATA).hexdigest()))
    for step in steps(DATA)[:3]:
        found.update(*step)
    pour(found, DATA)
    found.finish()


@pytest.mark.parametrize("at", [0, SMALLEST - 1, SMALLEST, len(DATA) - 1])
def test_every_byte_counts_and_a_chunk_may_begin_anew(at: int) -> None:
    found = check(by_chunks())
    wrong = bytearray(DATA)
    wrong[at] ^= 1
    index = at // SMALLEST
    with pytest.raises(Damaged, match=rf"w: the BLAKE3 of chunk {index} is not"):
        pour(found, bytes(wrong))
    with pytest.raises(AssertionError):
        found.finish()
    pour(found, DATA, index * SMALLEST)
    found.finish()


def test_a_right_chunk_that_comes_again_wrong_is_wrong() -> None:
    found = check(by_chunks())
    pour(found, DATA)
    with pytest.raises(Damaged):
        pour(found, bytes(len(DATA)))
    with pytest.raises(AssertionError):
        found.finish()


def test_a_chunk_that_never_came_is_never_ready() -> None:
    found = check(by_chunks())
    pour(found, DATA, SMALLEST)
    with pytest.raises(AssertionError):
        found.finish()


def test_without_chunks_it_is_the_sha_256() -> None:
    found = check(FileRef("w", len(DATA), "0" * 64))
    assert found.ordered
    pour(found, DATA)
    with pytest.raises(ArtifactRefused, match="its SHA-256 is not the one"):
        found.finish()


def test_a_file_has_so_many_chunks_or_none() -> None:
    assert chunked(b"") is None
    assert chunked(bytes(SMALLEST), SMALLEST).blake3 == chunked(bytes(SMALLEST)).blake3
    assert len(chunked(bytes(SMALLEST + 1), SMALLEST).blake3) == 2


def test_the_root_is_of_every_digest_and_of_their_order() -> None:
    one, two = "1" * 64, "2" * 64
    lists = [(one,), (two,), (one, two), (two, one), (one, one)]
    roots = {Chunks(size, each).root for each in lists for size in (1 << 20, 2 << 20)}
    assert len(roots) == 2 * len(lists)
