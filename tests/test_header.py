"""Safetensors headers: what the library writes reads; what is malformed does not."""

import gc
import json
import struct
import tracemalloc

import pytest
import torch
from safetensors.torch import save

from loader import placing
from loader.dtypes import DTYPES
from loader.errors import ArtifactRefused
from loader.header import ITEMSIZE, read_header
from loader.pack_weights import safetensors_bytes
from loader.placing import Placings, place

F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def _file(header: object, size: int = 8, text: bytes | None = None) -> bytes:
    text = json.dumps(header).encode() if text is None else text
    return struct.pack("<Q", len(text)) + text + bytes(size)


def test_a_large_header_is_not_remembered_for_any_file(monkeypatch) -> None:
    data = _file({"a": F32})
    placed, plans = place(data, len(data)), Placings()
    plans.verified("small", placed)
    assert plans.of("small") is placed
    monkeypatch.setattr(placing, "MAX_REMEMBERED", len(placed.header) - 1)
    plans.verified("large", placed)
    assert plans.of("large") is None


def test_sizes_are_those_of_the_dtypes() -> None:
    assert {name: dtype.itemsize for name, dtype in DTYPES.items()} == ITEMSIZE


@pytest.mark.parametrize("name", DTYPES)
def test_what_the_library_writes_reads(name: str) -> None:
    dtype = DTYPES[name]
    data = save(
        {
            "odd": torch.zeros(3, 5).to(dtype),
            "scalar": torch.zeros(()).to(dtype),
            "empty": torch.zeros(0, 7).to(dtype),
        },
        metadata={"made": "by a test"},
    )
    layout = read_header(data, len(data))
    assert {slot.name: (slot.dtype, slot.shape) for slot in layout.tensors} == {
        "odd": (name, (3, 5)),
        "scalar": (name, ()),
        "empty": (name, (0, 7)),
    }
    assert layout.tensors[-1].end == len(data) - layout.data_start


def test_the_header_alone_is_enough() -> None:
    data = _file({"a": F32})
    assert read_header(data[:-8], len(data)) == read_header(data, len(data))
    assert read_header(memoryview(data), len(data)).tensors[0].name == "a"


def test_an_empty_file_of_weights_reads() -> None:
    data = safetensors_bytes({})
    assert read_header(data, len(data)).tensors == ()


def _second(start: int, end: int, **more: object) -> dict[str, object]:
    shape = [(end - start) // 4]
    entry = {"dtype": "F32", "shape": shape, "data_offsets": [start, end], **more}
    return {"a": F32, "b": entry}


def _a(**changes: object) -> bytes:
    return _file({"a": {**F32, **changes}})


HUGE = struct.pack("<Q", 2**63)
CASES = {
    "empty": (b"", "too short"),
    "7 bytes": (bytes(7), "too short"),
    "length only": (struct.pack("<Q", 0), "too short"),
    "length beyond file": (struct.pack("<Q", 999) + b"{}", "longer than the file"),
    "length 2**63": (HUGE + b"{}" * 9, "limit"),
    "length 17 MiB": (struct.pack("<Q", 17 << 20) + b"{}" * 9, "limit"),
    "header of zero bytes": (struct.pack("<Q", 0) + bytes(8), "begin with"),
    "leading space": (
        _file(0, text=b' {"a":' + json.dumps(F32).encode() + b"}"),
        "beg",
    ),
    "leading mark": (_file(0, text=b"\xef\xbb\xbf{}"), "begin with"),
    "a list": (_file([], 0), "begin with"),
    "not JSON": (_file(0, text=b"{]"), "header: not JSON"),
    "not UTF-8": (_file(0, text=b'{"\xff": 1}'), "header: not a JSON"),
    "NaN": (_file(0, text=b'{"a": NaN}'), "header: NaN"),
    "key twice": (
        _file(0, text=b'{"a":%b,"a":%b}' % ((json.dumps(F32).encode(),) * 2)),
        "header: key 'a' twice",
    ),
    "field twice": (_file(0, text=b'{"a":{"dtype":"U8","dtype":"U8"}}'), "'dtype' twi"),
    "deep": (_file(0, text=b'{"a":' * 10_000 + b"1" + b"}" * 10_000), "deeper"),
    "entry a number": (_file({"a": 1}), "tensor 'a': must be an object"),
    "unknown field": (_a(strides=[1]), "tensor 'a': unknown key 'strides'"),
    "no dtype": (_file({"a": {"shape": [2], "data_offsets": [0, 8]}}), "'dtype'"),
    "no shape": (_file({"a": {"dtype": "F32", "data_offsets": [0, 8]}}), "'shape'"),
    "no offsets": (_file({"a": {"dtype": "F32", "shape": [2]}}), "'data_offsets'"),
    "dtype unknown": (_a(dtype="F31"), "tensor 'a': dtype 'F31'"),
    "dtype complex": (_a(dtype="C64", shape=[1]), "tensor 'a': dtype 'C64'"),
    "dtype of half a byte": (_a(dtype="F4"), "tensor 'a': dtype 'F4'"),
    "dtype a list": (_a(dtype=["F32"]), "tensor 'a': dtype ['F32']"),
    "shape negative": (_a(shape=[-2]), "tensor 'a': shape"),
    "shape a float": (_a(shape=[2.0]), "tensor 'a': shape"),
    "shape true": (_a(shape=[True, 2]), "tensor 'a': shape"),
    "shape a number": (_a(shape=2), "tensor 'a': shape"),
    "shape 2**64": (_a(shape=[2**64]), "tensor 'a': shape"),
    "shape overflows": (_a(shape=[2**32, 2**32]), "tensor 'a': shape"),
    "shape overflows to fit": (_a(shape=[2**62 + 2]), "tensor 'a': shape"),
    "empty yet overflows": (
        _file({"a": {"dtype": "F32", "shape": [0, 2**62], "data_offsets": [0, 0]}}, 0),
        "tensor 'a': shape",
    ),
    "rank 17": (_a(shape=[1] * 16 + [2]), "tensor 'a': shape"),
    "300 dims": (_a(shape=[1] * 299 + [2]), "tensor 'a': shape"),
    "offsets of one": (_a(data_offsets=[8]), "tensor 'a': data_offsets"),
    "offsets of three": (_a(data_offsets=[0, 4, 8]), "tensor 'a': data_offsets"),
    "offsets negative": (_a(data_offsets=[-8, 0]), "tensor 'a': data_offsets"),
    "offsets upside down": (_a(data_offsets=[8, 0]), "tensor 'a': data_offsets"),
    "offsets are text": (_a(data_offsets=["0", "8"]), "tensor 'a': data_offsets"),
    "too few bytes": (_a(data_offsets=[0, 4]), "tensor 'a': data_offsets"),
    "too many bytes": (_a(shape=[1]), "tensor 'a': data_offsets"),
    "overlap": (_file(_second(4, 12), 12), "tensor 'b': overlaps"),
    "the same bytes twice": (_file(_second(0, 8)), "tensor 'b': overlaps"),
    "hole": (_file(_second(12, 20), 20), "tensor 'b': follows a hole"),
    "hole in front": (_a(data_offsets=[4, 12]), "tensor 'a': follows a hole"),
    "file too long": (_file({"a": F32}, 9), "the data section has 9"),
    "file too short": (_file({"a": F32}, 7), "the data section has 7"),
    "name with newline": (_file({"a\nb": F32}), "a tensor's name"),
    "name with NUL": (_file({"a\0b": F32}), "a tensor's name"),
    "name with escape": (_file({"\x1b[2J": F32}), "a tensor's name"),
    "name with ..": (_file({"../../x": F32}), "a tensor's name"),
    "name empty": (_file({"": F32}), "a tensor's name"),
    "name of 513": (_file({"a" * 513: F32}), "a tensor's name"),
    "name of half a pair": (_file({"\ud800": F32}), "a tensor's name"),
    "name breaks the line": (_file({"a\u2028b": F32}), "a tensor's name"),
    "metadata a list": (_file({"a": F32, "__metadata__": []}), "'__metadata__'"),
    "metadata of numbers": (_file({"a": F32, "__metadata__": {"a": 1}}), "'__metadata"),
    "a zip": (b"PK\x03\x04" + bytes(64), "limit"),
    "a pickle": (b"\x80\x02}q\x00." + bytes(64), "limit"),
    "HTML": (b"<html><body>404</body></html>", "limit"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_malformed_is_refused(case: str) -> None:
    data, reason = CASES[case]
    with pytest.raises(ArtifactRefused) as refused:
        read_header(data, len(data))
    assert refused.value.message.startswith("model.safetensors")
    assert reason in refused.value.message
    assert refused.value.message.isprintable()
    assert len(refused.value.message) < 500


def test_ten_thousand_tensors_are_enough() -> None:
    empty = {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}
    most = _file({f"t{i}": empty for i in range(10_000)}, 0)
    assert len(read_header(most, len(most)).tensors) == 10_000
    more = _file({f"t{i}": empty for i in range(10_001)}, 0)
    with pytest.raises(ArtifactRefused, match="10001 tensors"):
        read_header(more, len(more))


def test_a_header_cut_anywhere_is_refused() -> None:
    data = save({"a": torch.zeros(2, 3), "b": torch.zeros(5)})
    start = read_header(data, len(data)).data_start
    for size in range(start):
        with pytest.raises(ArtifactRefused):
            read_header(data[:size], len(data))
        with pytest.raises(ArtifactRefused):
            read_header(data[:size], size)


def test_a_refusal_keeps_no_memory() -> None:
    wide = {f"tensor{i}": F32 for i in range(5_000)}
    data = _file(wide, 8)

    def refuse() -> None:
        with pytest.raises(ArtifactRefused):
            read_header(data, len(data))

    refuse()
    tracemalloc.start()
    for _ in range(5):
        refuse()
    gc.collect()  # the errors' tracebacks are cycles, and hold what was parsed
    left = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert left < len(data) // 20
