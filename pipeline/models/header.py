"""The header of a safetensors file into names, shapes and places of its tensors; no weight is read.

Format: eight bytes with the header's length N (little endian), N bytes of JSON, then the data
(https://github.com/huggingface/safetensors#format).
"""

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from pipeline.errors import RequestError

LONGEST_HEADER = 100_000_000
"""Bytes; what the safetensors library itself accepts."""

BYTES_OF = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
    **dict.fromkeys(("F8_E4M3FNUZ", "F8_E5M2FNUZ"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}
"""Bytes of one element, by the format's name for its type."""

NO_CHECKPOINT = (
    (b"version https://git-lfs", "is a Git LFS pointer: the file itself was never fetched"),
    (b"<!DOCTYPE", "is a web page, not the file behind it"),
    (b"<html", "is a web page, not the file behind it"),
    (b"PK\x03\x04", "is a pickled checkpoint or a zip, not a safetensors file"),
    (b"\x80\x02", "is a pickled checkpoint, not a safetensors file"),
    (b"GGUF", "is a GGUF file, not a safetensors file"),
)
"""(how the file begins, what it is): what people name by mistake."""


@dataclass(frozen=True)
class TensorFact:
    """One tensor as the header states it. `start` and `end` are byte offsets in the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, eq=False)
class Header:
    """What a safetensors file holds. `bytes` is the file's size.

    Equal to itself alone, so that what is found out about one can be remembered by it.
    """

    path: Path
    tensors: Mapping[str, TensorFact]
    metadata: Mapping[str, str]
    bytes: int


def read_header(path: Path) -> Header:
    """The checked header of `path`.

    Raises:
        RequestError: there is no such file, it is something else, or it was cut short.
    """
    try:
        with open(path, "rb") as handle:
            size = handle.seek(0, 2)
            handle.seek(0)
            beginning = handle.read(512)
            if len(beginning) < 8:
                raise RequestError(f"{path} is {'empty' if size == 0 else 'cut short'}. {AGAIN}")
            length = struct.unpack("<Q", beginning[:8])[0]
            _refuse_other_kinds(path, beginning, length)
            if length > size - 8:
                raise RequestError(
                    f"{path} is cut short: its header alone takes {length:,} bytes, "
                    f"and the file has {size:,}. {AGAIN}"
                )
            handle.seek(8)
            text = handle.read(length)
    except FileNotFoundError:
        raise RequestError(f"There is no {path}. Check the path in the recipe.") from None
    except IsADirectoryError:
        raise RequestError(f"{path} is a folder, not a safetensors file.") from None
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror}.") from None
    return _parse(path, text, 8 + length, size)


AGAIN = "Download or copy it again."


def _refuse_other_kinds(path: Path, beginning: bytes, length: int) -> None:
    for magic, verdict in NO_CHECKPOINT:
        if beginning.startswith(magic):
            raise RequestError(f"{path} {verdict}. Name a .safetensors file or a diffusers folder.")
    if beginning[8:9] != b"{" or length > LONGEST_HEADER:
        if b"\0" not in beginning and _is_text(beginning):
            shown = beginning[:40].decode(errors="replace").splitlines()[0]
            raise RequestError(
                f"{path} is a text file (it begins {shown!r}), not a checkpoint. "
                "Name a .safetensors file or a diffusers folder."
            )
        if beginning[8:9] == b"{":
            raise RequestError(
                f"{path} is damaged: it claims a header of {length:,} bytes, and none is longer "
                f"than {LONGEST_HEADER:,}. {AGAIN}"
            )
        raise RequestError(
            f"{path} is not a safetensors file. Name a .safetensors file or a diffusers folder; "
            "convert pickled .ckpt files first."
        )


def _is_text(beginning: bytes) -> bool:
    try:
        # The last character may have been cut in two.
        beginning[:-3].decode()
    except UnicodeDecodeError:
        return False
    return True


@lru_cache(maxsize=16)
def _parse(path: Path, text: bytes, data: int, size: int) -> Header:
    """Remembered by its bytes: a build asks some thousand times for headers that stay the same."""
    damaged = RequestError(f"{path} is damaged: its header is not one of safetensors. {AGAIN}")
    try:
        table = json.loads(text)
        metadata = dict(table.pop("__metadata__", None) or {})
        tensors = {name: _fact(row, data) for name, row in table.items()}
    except (ValueError, TypeError, KeyError, AttributeError):
        raise damaged from None
    end = data
    for fact in sorted(tensors.values(), key=lambda f: (f.start, f.end)):
        width = BYTES_OF.get(fact.dtype)
        if fact.start != end or (width and fact.end - fact.start != width * fact.elements):
            raise damaged
        end = fact.end
    if end > size:
        raise RequestError(
            f"{path} is cut short: its header promises {end:,} bytes, "
            f"and there are {size:,}. {AGAIN}"
        )
    if end < size:
        raise damaged
    return Header(path, tensors, metadata, size)


def _fact(row: dict[str, Any], data: int) -> TensorFact:
    start, end = row["data_offsets"]
    shape = tuple(int(side) for side in row["shape"])
    if not 0 <= start <= end or any(side < 0 for side in shape):
        raise ValueError("offsets")
    return TensorFact(str(row["dtype"]), shape, data + int(start), data + int(end))
