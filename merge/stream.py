"""Passes a base's tensors through, a block at a time: unchanged, or summed and reported on."""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from merge.arithmetic import DTYPES, Sums, Term, add_terms, bytes_of, row_blocks, tensor_of
from merge.container import BITS, Entry, Reader
from merge.errors import MergeError
from merge.layout import Part
from merge.matching import Use, Uses
from merge.output import Planned, write_tensors
from merge.records import LayerReport


class Work:
    """Streams the parts of a base through, collecting what the report says."""

    def __init__(
        self,
        parts: Sequence[Part],
        plans: Sequence[Planned],
        uses: Sequence[Uses],
        last: int,
        on_tensor: Callable[[int, int], None] | None,
    ) -> None:
        self.parts, self.plans, self.uses = parts, plans, uses
        self.layers: list[LayerReport] = []
        self.total = Sums()
        self.tensors = sum(len(planned.entries) for planned in plans)
        self._last = last
        self._on_tensor = on_tensor
        self._done = 0

    def write(self, number: int, path: Path) -> None:
        """Writes part `number` to `path`, a temporary file."""
        part, planned, uses = self.parts[number], self.plans[number], self.uses[number]
        rows: dict[str, LayerReport] = {}
        with Reader(part.path, part.header) as reader:

            def content(entry: Entry) -> Iterator[bytearray]:
                stored = part.header.entries[entry.name]
                terms = self._terms(uses.get(entry.name, []))
                sums = Sums()
                if terms or entry.dtype != stored.dtype:
                    yield from self._changed(part, reader, stored, entry.dtype, terms, sums)
                else:
                    yield from _unchanged(part, reader, stored)
                if entry.name in uses:
                    module = uses[entry.name][0].module.name
                    rows[entry.name] = _layer(part.label(entry.name), module, entry.dtype, sums)
                    self.total.add(sums)
                self._done += 1
                if self._on_tensor is not None:
                    self._on_tensor(self._done, self.tensors)

            write_tensors(path, planned, content)
        self.layers += [rows[key] for key in part.header.entries if key in rows]

    def _terms(self, uses: Sequence[Use]) -> list[Term]:
        """Reads factors. Those of strength 0 are read too, and refused if they hold NaN."""
        terms = []
        for use in uses:
            factors = use.file.factors(use.module)
            if use.strength != 0.0:
                terms.append(
                    Term(
                        factors.up,
                        factors.down,
                        use.strength * factors.scale,
                        use.addend == self._last,
                    )
                )
        return terms

    def _changed(
        self,
        part: Part,
        reader: Reader,
        stored: Entry,
        dtype: str,
        terms: Sequence[Term],
        sums: Sums,
    ) -> Iterator[bytearray]:
        count = math.prod(stored.shape)
        height = stored.shape[0] if stored.shape else 1
        width = count // height if height else 0
        row = width * BITS[stored.dtype] // 8
        for first, end in row_blocks(height if count else 0, width):
            content = reader.read(stored, first * row, (end - first) * row)
            weight = tensor_of(content, stored.dtype).view(end - first, width)
            result, block = add_terms(weight, terms, first, DTYPES[dtype])
            if not bool(torch.isfinite(result).all()):
                _refuse_infinite(part, stored.name, bool(torch.isfinite(weight).all()), dtype)
            sums.add(block)
            yield bytes_of(result)


def _unchanged(part: Part, reader: Reader, entry: Entry) -> Iterator[bytearray]:
    watched = entry.name in part.weights and entry.dtype in DTYPES
    for piece in reader.pieces(entry):
        if watched and not bool(torch.isfinite(tensor_of(piece, entry.dtype)).all()):
            _refuse_infinite(part, entry.name, False, entry.dtype)
        yield piece


def _refuse_infinite(part: Part, key: str, input_is_finite: bool, dtype: str) -> None:
    if not input_is_finite:
        raise MergeError(
            f"{key} in {part.path} holds NaN or infinity: the base is broken. Get it again."
        )
    raise MergeError(
        f"{key} does not fit into {dtype} after the merge: it became NaN or infinity. "
        "Lower the strength, or write dtype float32."
    )


def _layer(label: str, module: str, dtype: str, sums: Sums) -> LayerReport:
    return LayerReport(
        key=label,
        module=module,
        dtype=dtype,
        delta_rms=sums.rms(sums.delta),
        relative=sums.relative,
        last_rms=sums.rms(sums.last),
        cast_loss=sums.cast_loss,
    )
