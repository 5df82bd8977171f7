"""Reads a checkpoint one layer at a time, wherever and in whatever dtype its file keeps it."""

import math
from contextlib import ExitStack
from typing import Literal

import torch
from torch import Tensor

from merge.arithmetic import DTYPES, finite, tensor_of
from merge.container import BITS, Reader
from merge.errors import MergeError
from merge.layers import Base, Place

Tensors = Literal["weight", "bias"]
TENSORS: tuple[Tensors, ...] = ("weight", "bias")


class Weights:
    """An open checkpoint, read one layer at a time."""

    def __init__(self, base: Base, stack: ExitStack) -> None:
        self._base = base
        self._readers: list[Reader] = [stack.enter_context(part.reader()) for part in base.parts]

    def read(self, name: str, tensor: Tensors) -> tuple[Tensor, torch.dtype] | None:
        """A layer's weight or bias as (rows, columns), float32, and its dtype in the file.

        None where it has none.
        """
        layer = self._base.layers[name]
        places = layer.weight if tensor == "weight" else layer.bias
        return self._read(places[0]) if places else None

    def _read(self, place: Place) -> tuple[Tensor, torch.dtype]:
        part, reader = self._base.parts[place.part], self._readers[place.part]
        entry = part.header.entries[place.key]
        if entry.dtype not in DTYPES:
            raise MergeError(
                f"{part.label(place.key)} in {self._base.path} is stored as {entry.dtype}, whose "
                "rounding hides what a training did. Use an fp16, bf16 or fp32 form."
            )
        height = entry.shape[0]
        width = math.prod(entry.shape[1:])
        first, rows = (0, height) if place.transposed else (place.first, place.rows)
        row = width * BITS[entry.dtype] // 8
        stored = tensor_of(reader.read(entry, first * row, rows * row), entry.dtype)
        numbers = stored.view(rows, width)
        if place.transposed:
            numbers = numbers.T[place.first : place.first + place.rows]
        if not finite(stored):
            raise MergeError(
                f"{part.label(place.key)} in {self._base.path} holds NaN or infinity: "
                "the checkpoint is broken. Get it again."
            )
        return numbers.float(), DTYPES[entry.dtype]
