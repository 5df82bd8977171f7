"""Writes a LoRA whose ranks are known once they are computed: tensors wait on disk, not in RAM.

A .safetensors header stands before the tensors and holds their shapes. So the modules are computed
one at a time into a nameless file beside the output, and copied behind the header at the end.
"""

import math
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from merge.arithmetic import DTYPES, bytes_of
from merge.container import BITS, PIECE, Entry
from merge.errors import MergeError, writing
from merge.output import plan, replacing, write_tensors


class Spool:
    """Tensors added in order, then written as one file, whole or not at all."""

    def __init__(self, out: Path, file: BinaryIO) -> None:
        self._out = out
        self._file = file
        self._entries: dict[str, Entry] = {}
        self._size = 0

    def add(self, name: str, tensor: Tensor, dtype: str) -> None:
        """Adds a tensor, cast to `dtype` (safetensors' name).

        Raises:
            MergeError: a number does not fit into the dtype.
        """
        cast = tensor.to(DTYPES[dtype])
        if not bool(torch.isfinite(cast).all()):
            raise MergeError(
                f"{name} does not fit into {dtype}: it became infinite. Write float32 instead."
            )
        self.add_bytes(name, bytes_of(cast), dtype, tuple(tensor.shape))

    def add_bytes(self, name: str, content: bytearray, dtype: str, shape: tuple[int, ...]) -> None:
        """Adds a tensor as stored."""
        if len(content) * 8 != math.prod(shape) * BITS[dtype]:
            raise AssertionError(f"{name}: {len(content)} bytes for {shape} of {dtype}")
        if name in self._entries:
            raise MergeError(f"{name} would be written twice: two modules are the same layer.")
        with writing(self._out):
            self._file.write(content)
        self._entries[name] = Entry(name, dtype, shape, self._size, self._size + len(content))
        self._size += len(content)

    def write(self, metadata: Mapping[str, str]) -> int:
        """Writes the output, and returns its size in bytes.

        Raises:
            MergeError: no room (3), no permission (2), nothing was added (2).
        """
        if not self._entries:
            raise MergeError(f"No module is left to write to {self._out}.")
        planned = plan(list(self._entries.values()), metadata)
        with replacing(self._out, planned.size, folder=False) as temporary:
            write_tensors(temporary, planned, self._content)
        return planned.size

    def _content(self, entry: Entry) -> Iterator[bytearray]:
        stored = self._entries[entry.name]
        self._file.seek(stored.begin)
        for offset in range(0, stored.size, PIECE):
            piece = bytearray(min(PIECE, stored.size - offset))
            if self._file.readinto(piece) != len(piece):  # type: ignore[attr-defined]
                raise AssertionError(f"{entry.name} is not in the spool")
            yield piece


@contextmanager
def spool(out: Path) -> Iterator[Spool]:
    """A spool for `out`; what was not written is gone when the block ends, or the process.

    Raises:
        MergeError: no permission (2), no room (3).
    """
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        file = tempfile.TemporaryFile(dir=out.parent)  # noqa: SIM115 - closed below
    with file:
        yield Spool(out, file)
