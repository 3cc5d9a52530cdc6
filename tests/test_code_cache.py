"""The folder of machine code: ours alone, whole, or not believed."""

import hashlib
import json
import os

import pytest
import torch

from loader.code_cache import CodeCache, NotOurs
from loader.compiled import Term, Terms

KEY = "a" * 64
LIBRARY = b"\x7fELF and so on"
TERMS = Terms(
    (Term(torch.int64, ("s0", 4)), Term(torch.bfloat16, ())), {"s0": (1, 64)}, 2
)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "code"


@pytest.fixture
def cache(folder):
    made = CodeCache(folder)
    made.put(KEY, LIBRARY, TERMS)
    return made


def library(folder):
    return folder / f"{hashlib.sha256(LIBRARY).hexdigest()}.so"


def test_what_is_put_is_found_with_its_terms(cache, folder):
    entry = cache.find(KEY)
    assert entry is not None
    assert entry.terms == TERMS
    assert entry.library == library(folder)
    assert entry.library.read_bytes() == LIBRARY
    assert CodeCache(folder).find(KEY) == entry


def test_nothing_is_found_for_another_key(cache):
    assert cache.find("b" * 64) is None


@pytest.mark.parametrize("key", ["../" + "a" * 61, "", "a" * 63, "A" * 64])
def test_a_key_is_a_digest_and_nothing_else(cache, key):
    assert cache.find(key) is None
    with pytest.raises(ValueError, match="name of an entry"):
        cache.put(key, LIBRARY, TERMS)


def test_the_folder_is_made_for_its_user_alone(cache, folder):
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o077 for path in folder.iterdir()} == {0}


@pytest.mark.parametrize(
    ("mode", "ours"),
    [(0o777, False), (0o770, False), (0o757, False), (0o1777, True), (0o755, True)],
)
def test_a_folder_that_others_can_replace_is_refused(tmp_path, mode, ours):
    shared = tmp_path / "shared"
    CodeCache(shared / "mine" / "code")
    shared.chmod(mode)
    if ours:
        CodeCache(shared / "mine" / "code")
    else:
        with pytest.raises(NotOurs, match="above"):
            CodeCache(shared / "mine" / "code")


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o701])
def test_a_folder_open_to_others_is_refused(folder, mode):
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(NotOurs, match="chmod 700"):
        CodeCache(folder)


def test_a_folder_of_another_user_is_refused(folder, monkeypatch):
    folder.mkdir(mode=0o700)
    monkeypatch.setattr("os.geteuid", lambda: os.getuid() + 1)
    with pytest.raises(NotOurs):
        CodeCache(folder)


@pytest.mark.parametrize("suffix", [".so", ".json"])
def test_a_file_that_others_may_write_is_not_believed(cache, folder, suffix):
    (found,) = [path for path in folder.iterdir() if path.suffix == suffix]
    found.chmod(0o622)
    assert cache.find(KEY) is None


def test_a_link_is_not_believed(cache, folder, tmp_path):
    elsewhere = tmp_path / "elsewhere.so"
    library(folder).rename(elsewhere)
    library(folder).symlink_to(elsewhere)
    assert cache.find(KEY) is None


def test_a_damaged_library_is_not_there(cache, folder):
    library(folder).write_bytes(LIBRARY[:-1])
    assert cache.find(KEY) is None
    cache.put(KEY, LIBRARY, TERMS)
    assert cache.find(KEY) is not None


def _broken(change):
    def apply(told):
        change(told)
        return json.dumps(told)

    return apply


@pytest.mark.parametrize(
    "damage",
    [
        lambda told: "",
        lambda told: "[]",
        lambda told: json.dumps(told)[:-4],
        _broken(lambda told: told.update(format=2)),
        _broken(lambda told: told.pop("library")),
        _broken(lambda told: told.update(library="../x")),
        _broken(lambda told: told.update(outputs="many")),
        _broken(lambda told: told["inputs"][0].update(dtype="object")),
        _broken(lambda told: told["inputs"][0].update(dims=["s1", 4])),
        _broken(lambda told: told["inputs"][0].update(dims=[-1, 4])),
        _broken(lambda told: told.update(ranges={"s0": [1]})),
    ],
    ids=["empty", "list", "cut", "format", "unnamed", "path", "outputs", "dtype"]
    + ["stranger", "negative", "range"],
)
def test_terms_that_do_not_read_are_not_there(cache, folder, damage):
    path = folder / f"{KEY}.json"
    path.write_text(damage(json.loads(path.read_text())))
    assert cache.find(KEY) is None
