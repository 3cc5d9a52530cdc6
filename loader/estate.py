"""What a host tier leaves to the next one: its bytes, and a list of what lies where.

    bytes    a file in memory that somebody else owns, and so outlives this process
    list     another: how many of its bytes count (8 bytes), then records

Owns: both files as they are mapped here, and the list's form. Must not: know how they
get from one process to the next, or believe the bytes: each record has their BLAKE3,
which is looked at before they are used (loader/host.py).

A record counts from the moment the number in front says so. Whoever is killed while it
writes one leaves a list without it. That a model goes is written before anything else
may be written to its place; so what the list has is what the bytes are, but for pages
that were half written by whoever was killed: for them there is the digest.
"""

import mmap
import os
import struct
from collections.abc import Iterator

import msgspec
import torch

from loader.errors import DeviceFull
from loader.memory import PinnedMemory, pin, shed_shared

_LENGTH = struct.Struct("<Q")
_RECORD = struct.Struct("<I")


class Left(msgspec.Struct, array_like=True, tag=1):
    """`start`: in which slab. `header`, `size`: of the file they came from."""

    identity: str
    slab: int
    start: int
    nbytes: int
    size: int
    header: bytes
    digest: bytes


class Gone(msgspec.Struct, array_like=True, tag=2):
    """Nothing of it is here any more."""

    identity: str


_decoder = msgspec.msgpack.Decoder(Left | Gone)


class Bytes(PinnedMemory):
    """A DeviceMemory over such a file: slabs in the order in which they are asked for,
    as long as it goes. `pinned`: locked for a GPU."""

    def __init__(self, fd: int, pinned: bool) -> None:
        self._fd = fd
        self._size = os.fstat(fd).st_size
        self._pinned = pinned
        self.lazy = not pinned
        self._end = 0

    def slab(self, nbytes: int) -> torch.Tensor:
        """See DeviceMemory."""
        start = -(-self._end // mmap.ALLOCATIONGRANULARITY)
        start *= mmap.ALLOCATIONGRANULARITY
        if start + nbytes > self._size:
            raise DeviceFull("the host tier's memory has no room for another slab")
        region = mmap.mmap(self._fd, nbytes, offset=start)
        slab = torch.frombuffer(region, dtype=torch.uint8)
        if self._pinned:
            pin(slab)
        self._end = start + nbytes
        return slab

    def shed(self, unused: torch.Tensor) -> None:
        """See DeviceMemory. Locked pages stay."""
        if not self._pinned:
            shed_shared(unused)


class Estate:
    """Both files, from `estate_files`. Takes over the descriptors."""

    def __init__(self, data: int, records: int, pinned: bool) -> None:
        self.bytes = Bytes(data, pinned)
        self._data = data
        self._list = mmap.mmap(records, os.fstat(records).st_size)
        os.close(records)
        self._encoder = msgspec.msgpack.Encoder()
        self._live: dict[str, Left] = {
            record.identity: record for record in self._read()
        }

    def __iter__(self) -> Iterator[Left]:
        """What the last life left, the longest unused first."""
        return iter(list(self._live.values()))

    def came(self, record: Left) -> None:
        """These bytes are there, whole."""
        self._live[record.identity] = record
        self._append(record)

    def went(self, identity: str) -> None:
        """Said before anything else is written there."""
        if self._live.pop(identity, None) is not None:
            self._append(Gone(identity))

    def close(self) -> None:
        """An orderly end: nothing is left."""
        self._live.clear()
        _LENGTH.pack_into(self._list, 0, 0)
        os.close(self._data)

    def _append(self, record: Left | Gone) -> None:
        body = self._encoder.encode(record)
        (length,) = _LENGTH.unpack_from(self._list)
        at = _LENGTH.size + length
        if at + _RECORD.size + len(body) > len(self._list):
            self._write_anew()
            return
        _RECORD.pack_into(self._list, at, len(body))
        at += _RECORD.size
        self._list[at : at + len(body)] = body
        _LENGTH.pack_into(self._list, 0, at + len(body) - _LENGTH.size)

    def _write_anew(self) -> None:
        """Without what is gone. Killed meanwhile, it leaves an empty list."""
        _LENGTH.pack_into(self._list, 0, 0)
        at = _LENGTH.size
        for record in self._live.values():
            body = self._encoder.encode(record)
            end = at + _RECORD.size + len(body)
            if end > len(self._list) // 2:
                break  # the rest is not left to anybody: too many for this list
            _RECORD.pack_into(self._list, at, len(body))
            self._list[at + _RECORD.size : end] = body
            at = end
        _LENGTH.pack_into(self._list, 0, at - _LENGTH.size)

    def _read(self) -> Iterator[Left]:
        """As far as it makes sense."""
        (length,) = _LENGTH.unpack_from(self._list)
        at, end = _LENGTH.size, min(_LENGTH.size + length, len(self._list))
        live: dict[str, Left] = {}
        while at + _RECORD.size <= end:
            (size,) = _RECORD.unpack_from(self._list, at)
            at += _RECORD.size
            try:
                record = _decoder.decode(self._list[at : min(at + size, end)])
            except msgspec.DecodeError:
                break
            at += size
            if isinstance(record, Left):
                live[record.identity] = record
            else:
                live.pop(record.identity, None)
        yield from live.values()
