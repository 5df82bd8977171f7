"""Modules of two factors, one after another, into a LoRA file of kohya's or diffusers' layout."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from merge.arithmetic import DTYPES
from merge.errors import MergeError
from merge.lora_layout import ADAPTER, SUFFIXES, Layout, Ranked, adapter_metadata
from merge.lora_metadata import Written, lora_metadata
from merge.spool import Spool, spool


class Pairs:
    """A LoRA file in the making."""

    def __init__(self, spool: Spool, layout: Layout) -> None:
        self._spool = spool
        self._layout: Layout = layout
        self._ranked: list[Ranked] = []
        self._written: list[Written] = []

    def add(
        self,
        name: str,
        up: Tensor,
        down: Tensor,
        alpha: float,
        columns: tuple[int, ...],
        dtype: str,
    ) -> None:
        """Adds up (out, r) and down (r, in·h·w), cast to `dtype` (safetensors' name).

        name: as `layout` spells it. columns: (in,) of a linear layer, (in, h, w) of a convolution.

        Raises:
            MergeError: a number does not fit into the dtype.
        """
        rank = down.shape[0]
        suffix = SUFFIXES[self._layout]
        kernel = (1, 1) if len(columns) > 1 else ()
        self._spool.add(f"{name}.{suffix.down}", down.reshape(rank, *columns), dtype)
        self._spool.add(f"{name}.{suffix.up}", up.reshape(up.shape[0], rank, *kernel), dtype)
        self._finish(name, rank, alpha, columns, dtype)

    def add_stored(
        self,
        name: str,
        up: tuple[bytearray, str, tuple[int, ...]],
        down: tuple[bytearray, str, tuple[int, ...]],
        alpha: float,
    ) -> None:
        """Adds factors as they are stored: bytes, dtype and shape of each, not changed."""
        suffix = SUFFIXES[self._layout]
        rank, *columns = down[2]
        self._spool.add_bytes(f"{name}.{suffix.down}", *down)
        self._spool.add_bytes(f"{name}.{suffix.up}", *up)
        self._finish(name, rank, alpha, columns, down[1])

    def _finish(
        self, name: str, rank: int, alpha: float, columns: Sequence[int], dtype: str
    ) -> None:
        # What was divided by the rank and multiplied again is the same in float32 only.
        number = torch.tensor(alpha, dtype=torch.float32)
        suffix = SUFFIXES[self._layout].alpha
        if suffix:
            # bf16 holds 256 and 258, but not 257: such an alpha must not be rounded.
            exact = bool(number.to(DTYPES[dtype]) == number)
            self._spool.add(f"{name}.{suffix}", number, dtype if exact else "F32")
        self._ranked.append(Ranked(name, rank, float(number)))
        self._written.append(Written(rank, float(number), math.prod(columns[1:]) > 1))

    def write(
        self,
        original: Mapping[str, str],
        lineage: Mapping[str, Any],
        architecture: str | None,
        extra: Mapping[str, str],
    ) -> int:
        """Writes the output with the metadata of `lora_metadata`; returns its size in bytes.

        Raises:
            MergeError: no room (3), no permission (2), no module (2).
        """
        told = lora_metadata(original, self._written, lineage, architecture, {})
        if self._layout == "diffusers":
            told |= adapter_metadata(self._ranked)
        else:
            told.pop(ADAPTER, None)
        return self._spool.write({**told, **extra})


@contextmanager
def pairs(out: Path, layout: Layout, inputs: Sequence[Path]) -> Iterator[Pairs]:
    """A LoRA file to be written to `out`; without `write` nothing is left.

    Raises:
        MergeError: `out` is one of the inputs, or inside one; no permission; no room.
    """
    for path in inputs:
        place, source = out.resolve(), path.resolve()
        if place == source or source in place.parents:
            raise MergeError(f"The output {out} would overwrite its input {path}. Name another.")
    with spool(out) as opened:
        yield Pairs(opened, layout)
