import json
import os
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pipeline.errors import RequestError
from pipeline.models.header import read_header


def test_states_what_the_library_wrote(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file(
        {"b": torch.zeros(2, 3), "a": torch.ones(5).half(), "mark": torch.empty(0)},
        path,
        metadata={"k": "v"},
    )
    header = read_header(path)
    assert dict(header.metadata) == {"k": "v"}
    assert {n: (f.dtype, f.shape, f.elements) for n, f in header.tensors.items()} == {
        "a": ("F16", (5,), 5),
        "b": ("F32", (2, 3), 6),
        "mark": ("F32", (0,), 0),
    }
    fact = header.tensors["a"]
    assert path.read_bytes()[fact.start : fact.end] == torch.ones(5).half().numpy().tobytes()
    assert header.bytes == path.stat().st_size


def _with_header(table: object, data: bytes = b"") -> bytes:
    text = json.dumps(table).encode()
    return struct.pack("<Q", len(text)) + text + data


ONE = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
BAD = {
    "text": (b"once upon a time there was a checkpoint\n" * 9, "is a text file"),
    "utf-8 text": ("漆を塗る".encode() * 40, "is a text file"),
    "web page": (b"<!DOCTYPE html><html>" + b" " * 600, "is a web page"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
    "zip": (b"PK\x03\x04" + b"\0" * 600, "pickled checkpoint or a zip"),
    "pickle": (b"\x80\x02}q\0" + b"\0" * 600, "pickled checkpoint"),
    "noise": (bytes(range(255, 0, -1)) * 3, "is not a safetensors file"),
    "empty": (b"", "is empty"),
    "five bytes": (b"\1\0\0\0\0", "is cut short"),
    "header cut": (_with_header(ONE)[:20], "cut short: its header alone takes"),
    "data cut": (_with_header(ONE, b"\0" * 5), "its header promises"),
    "data too long": (_with_header(ONE, b"\0" * 9), "is damaged"),
    "huge header": (struct.pack("<Q", 1 << 40) + b"{" + b"\0" * 99, "claims a header of"),
    "no JSON": (struct.pack("<Q", 8) + b"{{{{{{{{", "is damaged"),
    "a list": (_with_header([1, 2, 3]).replace(b"[", b"{", 1), "is damaged"),
    "a hole": (
        _with_header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, b"\0" * 8),
        "is damaged",
    ),
    "wrong size": (
        _with_header({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}, b"\0" * 8),
        "is damaged",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_says_what_a_bad_file_is(kind: str, tmp_path: Path) -> None:
    content, sentence = BAD[kind]
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(RequestError) as caught:
        read_header(path)
    assert sentence in str(caught.value) and str(path) in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="There is no "):
        read_header(tmp_path / "none.safetensors")


def test_a_header_is_parsed_once_and_a_changed_one_anew(tmp_path: Path) -> None:
    """Remembered by its bytes: size and times of a file that is written over may stay the same."""
    path = tmp_path / "a.safetensors"
    path.write_bytes(_with_header(ONE, b"\0" * 8))
    times = path.stat()
    first = read_header(path)
    assert read_header(path) is first
    path.write_bytes(_with_header({"b": ONE["a"]}, b"\0" * 8))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert path.stat().st_size == first.bytes
    assert list(read_header(path).tensors) == ["b"]
