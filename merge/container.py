"""Reads .safetensors: a header checked to the byte, tensors in pieces, nothing mapped or cached.

Format (github.com/huggingface/safetensors): 8 bytes little-endian header length n, n bytes JSON
{name: {dtype, shape, data_offsets}}, then one buffer which the offsets cover, no hole, no overlap.
No torch here: who only wants to look at a header does not wait for it.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from merge.errors import FAILED, MergeError

BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32,
    "U64": 64, "I64": 64, "F64": 64, "C64": 64,
}  # fmt: skip
"""Bits per element of every dtype of the format."""

HEADER_LIMIT = 100_000_000
"""Bytes: the format's own limit on the header."""

PIECE = 4 * 1024 * 1024
"""Bytes read at once where a tensor passes through unchanged."""

PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
"""How torch's checkpoints begin: a zip file; before torch 1.6, as other pickles, bare."""

FRESH = "The file is damaged or half-downloaded: get it again."


@dataclass(frozen=True)
class Entry:
    """One tensor: name, dtype (safetensors' name), shape, its bytes [begin, end) in the buffer."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def size(self) -> int:
        """Bytes."""
        return self.end - self.begin


@dataclass(frozen=True)
class Header:
    """The tensors in the header's order, its metadata, and where the buffer starts in the file."""

    entries: dict[str, Entry]
    metadata: dict[str, str]
    start: int


def read_header(path: Path) -> Header:
    """The checked header of `path`.

    Raises:
        MergeError: the file is missing, empty, text, a pickle, truncated, or says what cannot be.
    """
    try:
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            prefix = file.read(8)
            _refuse_other_formats(path, prefix, size)
            length = int.from_bytes(prefix, "little")
            if length > min(size - 8, HEADER_LIMIT):
                raise MergeError(
                    f"{path} says that its header has {length:,} bytes, but the file has "
                    f"{size:,} and a header at most {HEADER_LIMIT:,}. {FRESH}"
                )
            text = file.read(length)
    except OSError as error:
        raise MergeError(f"{path} cannot be read: {error.strerror}. Check the path.") from None
    return _parse(path, text, size - 8 - length)


def is_pickled(prefix: bytes, size: int) -> bool:
    """Whether a file of `size` bytes that begins with these 8 is a checkpoint of torch's own form.

    A safetensors header may have a length whose bytes look the same: one of 0x380 bytes does.
    """
    return prefix.startswith(PICKLES) and int.from_bytes(prefix, "little") > size - 8


def _refuse_other_formats(path: Path, prefix: bytes, size: int) -> None:
    if size == 0:
        raise MergeError(f"{path} is empty. Get the file again.")
    if is_pickled(prefix, size):
        raise MergeError(
            f"{path} is a pickled checkpoint (.ckpt, .pt), which can run code when opened. "
            "Get or make the .safetensors form of it."
        )
    if all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in prefix):
        raise MergeError(
            f"{path} is a text file (it begins with {prefix.decode('ascii')!r}), not .safetensors: "
            "perhaps a web page, or a git-lfs pointer. Get the file itself."
        )
    if size < 10:
        raise MergeError(f"{path} has {size} bytes, too few for .safetensors. {FRESH}")


class _DuplicateKey(ValueError):
    pass


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise _DuplicateKey(next(name for name in names if names.count(name) > 1))
    return found


def _parse(path: Path, text: bytes, buffer_size: int) -> Header:
    try:
        parsed = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
    except _DuplicateKey as error:
        raise MergeError(f"The header of {path} has the key {error} twice. {FRESH}") from None
    except (ValueError, RecursionError) as error:
        raise MergeError(f"The header of {path} is not JSON ({error}). {FRESH}") from None
    if not isinstance(parsed, dict):
        raise MergeError(f"The header of {path} is not a JSON object. {FRESH}")
    metadata = parsed.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise MergeError(f"__metadata__ in {path} is not a table of texts. {FRESH}")
    entries = {name: _entry(path, name, fields) for name, fields in parsed.items()}
    position = 0
    for entry in sorted(entries.values(), key=lambda e: (e.begin, e.end)):
        if entry.begin != position:
            kind = (
                "overlaps another tensor" if entry.begin < position else "leaves a hole before it"
            )
            raise MergeError(f"{entry.name} in {path} {kind} (byte {entry.begin:,}). {FRESH}")
        position = entry.end
    if position != buffer_size:
        raise MergeError(
            f"The tensors of {path} need {position:,} bytes and the file has {buffer_size:,} "
            f"for them. {FRESH}"
        )
    return Header(entries, metadata, 8 + len(text))


def _entry(path: Path, name: str, fields: Any) -> Entry:
    try:
        dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
        begin, end = offsets
        numbers = [*shape, begin, end]
    except (TypeError, KeyError, ValueError):
        raise MergeError(
            f"{name} in {path} lacks a dtype, a shape or two data_offsets. {FRESH}"
        ) from None
    if dtype not in BITS:
        raise MergeError(
            f"{name} in {path} has the dtype {dtype!r}, which is not one of the format. {FRESH}"
        )
    if not all(type(n) is int and n >= 0 for n in numbers):
        raise MergeError(f"{name} in {path} has shape {shape} and offsets {offsets}. {FRESH}")
    if (end - begin) * 8 != math.prod(shape) * BITS[dtype]:
        raise MergeError(
            f"{name} in {path} has shape {shape} of {dtype} but {end - begin:,} bytes. {FRESH}"
        )
    return Entry(name, dtype, tuple(shape), begin, end)


class Reader:
    """An open .safetensors file: tensors read whole or in pieces, constant memory."""

    copyable = True
    """Whether the file holds the tensors' bytes as they are, so that the kernel can copy them."""

    def __init__(self, path: Path, header: Header | None = None) -> None:
        self.path = path
        self.header = header if header is not None else read_header(path)
        try:
            self._file = open(path, "rb", buffering=0)  # noqa: SIM115 - closed by __exit__
        except OSError as error:
            raise MergeError(f"{path} cannot be read: {error.strerror}. Check the path.") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def fileno(self) -> int:
        return self._file.fileno()

    def read_into(self, entry: Entry, offset: int, view: memoryview) -> None:
        """Fills `view` with a tensor's bytes from `offset` on.

        Raises:
            MergeError: the file shrank or became unreadable since its header was read.
        """
        filled = 0
        try:
            self._file.seek(self.header.start + entry.begin + offset)
            while filled < len(view):
                got = self._file.readinto(view[filled:])
                if not got:
                    raise MergeError(
                        f"{self.path} became shorter while it was read. Start again.", FAILED
                    )
                filled += got
        except OSError as error:
            raise MergeError(
                f"{self.path} could not be read: {error.strerror}. Check the disk.", FAILED
            ) from error

    def read(self, entry: Entry, offset: int = 0, count: int | None = None) -> bytearray:
        """`count` bytes of a tensor from `offset` (bytes), or all of it. Raises as `read_into`."""
        content = bytearray(entry.size - offset if count is None else count)
        self.read_into(entry, offset, memoryview(content))
        return content

    def pieces(self, entry: Entry) -> Iterator[bytearray]:
        """A tensor's bytes in order, at most PIECE at once."""
        for offset in range(0, entry.size, PIECE):
            yield self.read(entry, offset, min(PIECE, entry.size - offset))
