"""The folder of compiled graphs (`--compile-cache`).

    <key>.json      what was compiled on which terms, and which library it is
    <sha256>.so     the library

Owns: its files, whole under their names or not there, and whom it believes. Must not:
compile, or load a library into this process.

A library is machine code: who can write here can run anything as us. So the folder must
be ours alone (0700, our own uid), no folder above it another's, its files ours, plain
and not writable by others, and the library must be the one its terms name by digest.
That guards against a folder shared by mistake and against damage; not against our own
uid, nor root.
"""

import hashlib
import json
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from loader.arguments import DTYPES
from loader.compiled import Dim, Term, Terms
from loader.spool_files import write_whole

FORMAT = 1
MAX_TERMS = 1 << 20
MAX_LIBRARY = 256 << 20

_KEY = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[a-z][0-9]{1,6}")


class NotOurs(Exception):
    """The folder, or a file in it, could have been written by somebody else."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A library that is there, whole, and ours."""

    library: Path
    terms: Terms


class CodeCache:
    """One folder, made if need be. Raises NotOurs, OSError."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder = self._folder = folder.resolve()
        found = os.stat(self._folder, follow_symlinks=False)
        if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
            raise NotOurs(
                "the folder of compiled code must belong to the server's user and be "
                "closed to all others (chmod 700)"
            )
        _check_way(self._folder)

    def find(self, key: str) -> Entry | None:
        """What was compiled for this key. What is damaged, or could be another's, is as
        good as not there."""
        try:
            told = json.loads(self._read(f"{_checked(key)}.json", MAX_TERMS))
            if told["format"] != FORMAT:
                return None
            digest = _checked(told["library"])
            terms = _terms(told)
            data = self._read(f"{digest}.so", MAX_LIBRARY)
        except (OSError, NotOurs, ValueError, KeyError, TypeError, AttributeError):
            return None
        if hashlib.sha256(data).hexdigest() != digest:
            return None
        return Entry(self._folder / f"{digest}.so", terms)

    def put(self, key: str, library: bytes, terms: Terms) -> Entry:
        """Keep a library; the terms are written last, and name it."""
        digest = hashlib.sha256(library).hexdigest()
        path = self._folder / f"{digest}.so"
        write_whole(path, [memoryview(library)])
        told = {"format": FORMAT, "library": digest, **_told(terms)}
        text = json.dumps(told, indent=1).encode()
        write_whole(self._folder / f"{_checked(key)}.json", [memoryview(text)])
        return Entry(path, terms)

    def _read(self, name: str, most: int) -> bytes:
        fd = os.open(self._folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with os.fdopen(fd, "rb") as file:
            found = os.fstat(fd)
            if (
                not stat.S_ISREG(found.st_mode)
                or found.st_uid != os.geteuid()
                or stat.S_IMODE(found.st_mode) & 0o022
            ):
                raise NotOurs(f"{name} is not a plain file of the server's own user")
            if found.st_size > most:
                raise ValueError("larger than anything that is written here")
            return file.read()


def _check_way(folder: Path) -> None:
    """Who can rename what stands on the way to a folder can put another in its place.
    With the sticky bit (/tmp) only the owners can."""
    for parent in folder.parents:
        found = os.stat(parent, follow_symlinks=False)
        open_to_all = found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX
        if open_to_all or found.st_uid not in (0, os.geteuid()):
            raise NotOurs(
                "every folder above that of compiled code must belong to root or the "
                "server's user, and be writable by no others (chmod go-w)"
            )


def _checked(key: str) -> str:
    if _KEY.fullmatch(key) is None:
        raise ValueError("not the name of an entry")
    return key


def _told(terms: Terms) -> dict[str, object]:
    return {
        "inputs": [
            {"dtype": str(term.dtype).removeprefix("torch."), "dims": list(term.dims)}
            for term in terms.inputs
        ],
        "ranges": {name: list(bounds) for name, bounds in terms.ranges.items()},
        "outputs": terms.outputs,
    }


def _terms(told: dict[str, object]) -> Terms:
    """As written by `_told`; ValueError, KeyError or TypeError if it is not."""
    inputs, ranges, outputs = told["inputs"], told["ranges"], told["outputs"]
    if not (
        isinstance(inputs, list)
        and isinstance(ranges, dict)
        and isinstance(outputs, int)
    ):
        raise ValueError("no terms")
    made = tuple(
        Term(DTYPES[item["dtype"]], tuple(_dim(dim, ranges) for dim in item["dims"]))
        for item in inputs
    )
    bounds = {str(name): (int(low), int(high)) for name, (low, high) in ranges.items()}
    return Terms(made, bounds, outputs)


def _dim(value: object, ranges: dict[str, object]) -> Dim:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    if isinstance(value, str) and _NAME.fullmatch(value) and value in ranges:
        return value
    raise ValueError("not a size")
