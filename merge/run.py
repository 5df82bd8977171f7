"""Adds LoRAs to a checkpoint: base.safetensors + lora.safetensors… → merged.safetensors.

    urushi merge BASE LORA… --strength S… --out FILE

Everything that can be known from headers (names, shapes, forms, room on the disk) is checked before
the first byte is written. Then tensors stream through one block of rows at a time.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from merge.arithmetic import DTYPES, dtype_named, exact_products
from merge.container import BITS
from merge.errors import MergeError
from merge.hand import Hand
from merge.identity import Hasher, identity, recall
from merge.layers import Base, Part
from merge.layout import look
from merge.layout_folder import left_out
from merge.lineage import UNKNOWN, merged_metadata
from merge.lora import open_loras
from merge.matching import match
from merge.output import Planned, copy_file, plan, replacing, rewrite_prefix, sync_folder
from merge.records import Addend, MergeReport
from merge.stream import Work
from merge.strength import require_finite

LOSS_WORTH_A_WARNING = 0.2
"""Share of the last delta: at 0.2 an fp16 chain still behaves, beyond it the round fades."""

BELOW_THE_GRID = 0.5
"""Share of a weight's last delta: beyond it most of the delta is smaller than the dtype's steps."""


def merge(
    base: Path,
    addends: Sequence[Addend],
    out: Path,
    *,
    dtype: str | None = None,
    metadata: Mapping[str, str] | None = None,
    on_tensor: Callable[[int, int], None] | None = None,
    identities: Mapping[Path, str] | None = None,
    allow_unmatched: bool = False,
    force: bool = False,
    stable_rank: bool = False,
) -> MergeReport:
    """Writes base + Σ strength · alpha / rank · up · down to `out`, in the layout of the base.

    The sum is in float32 from the base (float64 for a float64 weight), in the order given, with one
    cast at the end; constant memory; the same bytes each time. Key order, tensors that are not
    touched, zero-element markers and metadata are the base's. A strength of 0 changes no tensor.

    Args:
        base: single file (.safetensors, .ckpt) of SD 1.5 or SDXL, or a diffusers folder of either;
            `out` becomes the same kind, always with .safetensors inside.
        dtype: "float16", "bfloat16" or "float32" for all model weights; None keeps each one's own.
        metadata: added to the output's, over what is there.
        on_tensor: called with (tensors done, tensors in all).
        identities: BLAKE3 hashes that the caller remembers, by path; others are computed on the
            way, in the one pass that reads the file anyway.
        allow_unmatched: leave out, and report, LoRA modules that the base has no layer for.
        force: `out` may be one of the inputs, which it then takes the place of.
        stable_rank: fill `LayerReport.stable_rank`.

    Raises:
        MergeError: with `exit_code` 2 (wrong input), 3 (disk full) or 1; `out` is as it was.
    """
    target = dtype_named(dtype)
    for addend in addends:
        require_finite(addend.path, addend.strength)
    found = look(base)
    refuse_overwriting([base, *(addend.path for addend in addends)], out, force)
    with ExitStack() as stack:
        files = stack.enter_context(open_loras([addend.path for addend in addends]))
        uses, unmatched = match(found, addends, files, allow_unmatched)
        hashes = [identity(addend.path, identities) for addend in addends]
        known = recall(base, identities)
        hashers = {} if known else {part.path: Hasher(part.path) for part in found.parts}
        described = list(zip(hashes, addends, strict=True))

        def planned(base_hash: str) -> list[Planned]:
            return [
                _planned(part, found, target, base_hash, described, metadata or {})
                for part in found.parts
            ]

        plans = planned(known or UNKNOWN)
        last = len(addends) - 1
        stack.enter_context(exact_products())
        # A folder's other files are small beside its weights, which is all that is counted here.
        with replacing(out, sum(p.size for p in plans), found.folder) as temporary:
            places = _places(found, temporary)
            if found.folder:
                _copy_rest(found, temporary)
            with Hand() as hand:
                work = Work(found, plans, uses, last, hashers, on_tensor, stable_rank, hand)
                for number, place in enumerate(places):
                    work.write(number, place)
            base_hash = known or identity(
                base, None, {path: hasher.hexdigest() for path, hasher in hashers.items()}
            )
            if known is None:
                for place, plan_ in zip(places, planned(base_hash), strict=True):
                    rewrite_prefix(place, plan_)
            for folder in {place.parent for place in places} if found.folder else ():
                sync_folder(folder)
    return _report(out, base_hash, hashes, work, unmatched)


def refuse_overwriting(sources: Sequence[Path], out: Path, force: bool) -> None:
    """Raises MergeError where `out` is one of `sources` (unless forced), in one, or around one."""
    place = out.resolve()
    for source in (path.resolve() for path in sources):
        if place == source and not force:
            raise MergeError(
                f"The output {out} would overwrite its input {source}. Name another, or force it."
            )
        if source in place.parents or place in source.parents:
            raise MergeError(
                f"The output {out} and the input {source} lie one in the other. Name another."
            )


def _places(base: Base, temporary: Path) -> list[Path]:
    if base.folder:
        return [temporary / part.place for part in base.parts]
    return [temporary]


def _planned(
    part: Part,
    base: Base,
    target: str | None,
    base_hash: str,
    addends: Sequence[tuple[str, Addend]],
    extra: Mapping[str, str],
) -> Planned:
    entries = []
    for entry in part.header.entries.values():
        if target is not None and entry.name in part.weights and entry.dtype in DTYPES:
            size = entry.size * 8 // BITS[entry.dtype] * BITS[target] // 8
            entry = replace(entry, dtype=target, begin=0, end=size)
        entries.append(entry)
    header = part.header
    described = merged_metadata(
        header.metadata, base.family, base_hash, addends, header.entries, extra
    )
    return plan(entries, described, like=header.start if target is None else None)


def _copy_rest(base: Base, temporary: Path) -> None:
    """A pipeline's other files. Other forms of the merged weights would show the unmerged model to
    a loader that prefers them, and are left out."""
    rest = []
    # followlinks: a model cache's folders are links.
    for folder, _, names in os.walk(base.path, followlinks=True):
        for name in sorted(names):
            inside = Path(folder, name).relative_to(base.path)
            if not left_out(base, inside):
                copy_file(base.path / inside, temporary / inside)
                rest.append(temporary / inside)
    for written in {path.parent for path in rest}:
        sync_folder(written)
    for place in _places(base, temporary):
        place.parent.mkdir(parents=True, exist_ok=True)


def _report(
    out: Path, base: str, hashes: Sequence[str], work: Work, unmatched: tuple[str, ...]
) -> MergeReport:
    total = work.total
    warnings = []
    if total.cast_loss > LOSS_WORTH_A_WARNING:
        warnings.append(
            f"The cast hides {total.cast_loss:.0%} of the last addend's delta: it is near the "
            "output dtype's grid. Keep the LoRA, and merge with dtype float32 to see all of it."
        )
    lost = [row for row in work.layers if row.cast_loss > BELOW_THE_GRID]
    # A few are in every LoRA: layers that training hardly moved.
    if len(lost) > len(work.layers) // 10:
        worst = max(lost, key=lambda row: row.cast_loss)
        warnings.append(
            f"In {len(lost)} of {len(work.layers)} weights the last addend's delta is mostly below "
            f"the steps of the output's dtype; {worst.key} loses most of it, {worst.cast_loss:.0%}."
        )
    if unmatched:
        warnings.append(f"{len(unmatched)} LoRA modules found no weight and were left out.")
    return MergeReport(
        out=out,
        base=base,
        addends=tuple(hashes),
        matched=tuple(work.layers),
        unmatched=unmatched,
        relative=total.relative,
        cast_loss=total.cast_loss,
        tensors=work.tensors,
        size=sum(planned.size for planned in work.plans),
        warnings=tuple(warnings),
    )
