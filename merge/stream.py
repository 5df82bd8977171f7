"""Passes a base's tensors through, a block at a time: unchanged, or summed and reported on.

Every byte of the base is read once, from the first to the last: what is needed of it (its hash,
that it is finite, the sum) is taken from that one pass.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from merge.arithmetic import (
    DTYPES,
    Memory,
    Sums,
    add_terms,
    finite,
    is_compared,
    row_blocks,
    tensor_of,
)
from merge.container import Entry, Reader
from merge.delta import Term
from merge.errors import MergeError
from merge.hand import Hand, Slots
from merge.identity import Hasher
from merge.layers import Base, Part
from merge.matching import Use, Uses
from merge.output import Content, Planned, Span, write_tensors
from merge.records import LayerReport
from merge.sizes import of_terms

SLOTS = 3
"""Blocks of each kind in memory: one summed, one hashed or written, one waiting."""

PIECE = 512 * 1024
"""Bytes read at once of what passes through: hashed and looked at while in the cache."""


@dataclass(frozen=True)
class Segment:
    """Some rows of a tensor and what is added to them."""

    first: int
    rows: int
    uses: tuple[Use, ...]


class Work:
    """Streams the parts of a base through, collecting what the report says."""

    def __init__(
        self,
        base: Base,
        plans: Sequence[Planned],
        uses: Sequence[Uses],
        last: int,
        hashers: Mapping[Path, Hasher],
        on_tensor: Callable[[int, int], None] | None,
        stable_rank: bool,
        hand: Hand,
    ) -> None:
        self.base, self.plans, self.uses = base, plans, uses
        self.layers: list[LayerReport] = []
        self.total = Sums()
        self.tensors = sum(len(planned.entries) for planned in plans)
        self._last = last
        self._hashers = hashers
        self._on_tensor = on_tensor
        self._stable_rank = stable_rank
        self._memory = Memory()
        self._hand = hand
        self._stored, self._written = Slots(hand, SLOTS), Slots(hand, SLOTS)
        self._done = 0

    def write(self, number: int, path: Path) -> None:
        """Writes part `number` to `path`, a temporary file."""
        part, planned, uses = self.base.parts[number], self.plans[number], self.uses[number]
        rows: dict[str, list[LayerReport]] = {}
        with part.reader() as reader:
            source = _Source(part, reader, self._hashers.get(part.path), self._hand)

            def content(entry: Entry) -> Iterator[Content]:
                stored = part.header.entries[entry.name]
                segments = _segments(stored, uses.get(entry.name, []))
                added = any(use.strength for segment in segments for use in segment.uses)
                if added or entry.dtype != stored.dtype:
                    rows[entry.name] = []
                    yield from self._changed(source, stored, entry.dtype, segments, rows)
                else:
                    yield from self._unchanged(source, stored)
                    rows[entry.name] = [
                        self._unmoved(part, stored, segment) for segment in segments if segment.uses
                    ]
                self._done += 1
                if self._on_tensor is not None:
                    self._on_tensor(self._done, self.tensors)

            write_tensors(path, planned, content, self._hand)
        self.layers += [row for key in part.header.entries for row in rows.get(key, [])]

    def _changed(
        self,
        source: "_Source",
        stored: Entry,
        dtype: str,
        segments: Sequence[Segment],
        rows: dict[str, list[LayerReport]],
    ) -> Iterator[Content]:
        width = _flat(stored)[1]
        turned = any(use.place.transposed for segment in segments for use in segment.uses)
        for segment in segments:
            terms = self._terms(segment.uses)
            whole = turned or any(term.delta.whole for term in terms)
            blocks = [(0, segment.rows)] if whole else row_blocks(segment.rows, width)
            sums = Sums()
            for first, end in blocks:
                slot = self._written.take()
                result, block = self._block(
                    source, stored, dtype, segment.first, first, end, terms, turned, slot
                )
                sums.add(block)
                yield result
                self._written.given(slot)
            if segment.uses:
                rows[stored.name].append(
                    self._report(source.part, stored, dtype, segment, terms, sums)
                )

    def _block(
        self,
        source: "_Source",
        stored: Entry,
        dtype: str,
        start: int,
        first: int,
        end: int,
        terms: Sequence[Term],
        turned: bool,
        slot: int,
    ) -> tuple[memoryview, Sums]:
        """Rows [start + first, start + end) of a tensor, summed and cast, as bytes to write."""
        width = _flat(stored)[1]
        row = width * DTYPES[stored.dtype].itemsize
        reading = self._stored.take()
        view = self._memory.take(f"stored {reading}", (end - first) * row)
        source.read_into(stored, (start + first) * row, view)
        self._stored.given(reading)
        weight = tensor_of(view, stored.dtype).view(end - first, width)
        if turned:
            weight = weight.T.contiguous()
        written = self._memory.take(f"written {slot}", weight.numel() * DTYPES[dtype].itemsize)
        result = tensor_of(written, dtype).view(end - first, width)
        into = torch.empty(weight.shape, dtype=DTYPES[dtype]) if turned else result
        sums = add_terms(weight, terms, first, into, self._memory)
        if turned:
            result.copy_(into.T)
        # What the cast lost was summed over every element: NaN and infinity would show in it.
        compared = is_compared(terms, DTYPES[stored.dtype], DTYPES[dtype])
        if not (compared and math.isfinite(sums.lost)) and not finite(result):
            _refuse_infinite(source.part, stored.name, finite(weight), dtype)
        return written, sums

    def _terms(self, uses: Sequence[Use]) -> list[Term]:
        """Reads adapters. Those of strength 0 are read too, and refused if they hold NaN."""
        terms = []
        for use in uses:
            delta = use.file.delta(use.module, use.tensor)
            if use.strength != 0.0:
                terms.append(Term(delta, use.strength, use.addend == self._last))
        return terms

    def _unchanged(self, source: "_Source", entry: Entry) -> Iterator[Content]:
        """The tensor as it is; it is read for its hash and for NaN, and copied by the kernel."""
        watched = entry.name in source.part.weights and entry.dtype in DTYPES
        if source.reader.copyable and not watched and source.hasher is None:
            yield Span(source.reader, entry, 0, entry.size)
            return
        for offset in range(0, entry.size, PIECE):
            count = min(PIECE, entry.size - offset)
            slot = self._stored.take()
            view = self._memory.take(f"stored {slot}", count)
            source.read_into(entry, offset, view)
            if watched and not finite(tensor_of(view, entry.dtype)):
                _refuse_infinite(source.part, entry.name, False, entry.dtype)
            yield Span(source.reader, entry, offset, count) if source.reader.copyable else view
            self._stored.given(slot)

    def _unmoved(self, part: Part, stored: Entry, segment: Segment) -> LayerReport:
        """A row for a layer whose strengths are all 0. Its factors are read, for NaN."""
        self._terms(segment.uses)
        return self._report(part, stored, stored.dtype, segment, [], Sums())

    def _report(
        self,
        part: Part,
        stored: Entry,
        dtype: str,
        segment: Segment,
        terms: Sequence[Term],
        sums: Sums,
    ) -> LayerReport:
        sizes = of_terms(terms, self._stable_rank)
        # Sums knows the deltas that are not of low rank, the factors those that are.
        sums = replace(
            sums,
            delta=sums.delta if sizes.delta is None else sizes.delta,
            last=sums.last if sizes.last is None else sizes.last,
        )
        self.total.add(sums)
        partly = segment.rows != _flat(stored)[0]
        rows = f"[{segment.first}:{segment.first + segment.rows}]" if partly else ""
        return LayerReport(
            key=part.label(stored.name) + rows,
            module=segment.uses[0].module.name,
            dtype=dtype,
            delta_rms=sums.rms(sums.delta),
            relative=sums.relative,
            last_rms=sums.rms(sums.last),
            cast_loss=sums.cast_loss,
            stable_rank=sizes.stable_rank,
        )


class _Source:
    """A part being read: its bytes go by its hasher on their way."""

    def __init__(self, part: Part, reader: Reader, hasher: Hasher | None, hand: Hand) -> None:
        self.part, self.reader, self._hand = part, reader, hand
        # A .ckpt is not read at places that are its own: it is hashed by itself.
        self.hasher = hasher if reader.copyable else None

    def read_into(self, entry: Entry, offset: int, view: memoryview) -> None:
        self.reader.read_into(entry, offset, view)
        if self.hasher is not None:
            position = self.part.header.start + entry.begin + offset
            self._hand.do(partial(self.hasher.saw, position, view))


def _flat(entry: Entry) -> tuple[int, int]:
    """Rows and columns of a tensor: everything behind the first axis is a row."""
    height = entry.shape[0] if entry.shape else 1
    return height, math.prod(entry.shape[1:])


def _segments(entry: Entry, uses: Sequence[Use]) -> list[Segment]:
    """The tensor's rows from first to last, cut where other layers begin: OpenCLIP's thirds."""
    height = _flat(entry)[0]
    if not uses:
        return [Segment(0, height, ())]
    grouped: dict[tuple[int, int], list[Use]] = {}
    for use in uses:
        grouped.setdefault((use.place.first, use.place.rows), []).append(use)
    segments = []
    position = 0
    for (first, rows), found in sorted(grouped.items(), key=lambda pair: pair[0]):
        if first > position:
            segments.append(Segment(position, first - position, ()))
        segments.append(Segment(first, rows, tuple(found)))
        position = first + rows
    if position < height:
        segments.append(Segment(position, height - position, ()))
    return segments


def _refuse_infinite(part: Part, key: str, input_is_finite: bool, dtype: str) -> None:
    if not input_is_finite:
        raise MergeError(
            f"{key} in {part.path} holds NaN or infinity: the base is broken. Get it again."
        )
    raise MergeError(
        f"{key} does not fit into {dtype} after the merge: it became NaN or infinity. "
        "Lower the strength, or write dtype float32."
    )
