"""Adds LoRAs to a checkpoint: base.safetensors + lora.safetensors… → merged.safetensors.

    urushi merge BASE LORA… --strength S… --out FILE

Everything that can be known from headers (names, shapes, forms, room on the disk) is checked before
the first byte is written. Then tensors stream through one block of rows at a time.
"""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from merge.arithmetic import DTYPES, exact_products
from merge.container import BITS
from merge.errors import MergeError
from merge.layout import WEIGHTS, Part, look
from merge.lineage import identity, merged_metadata
from merge.lora import open_loras
from merge.matching import match
from merge.output import Planned, copy_file, plan, replacing, sync_folder
from merge.records import Addend, MergeReport
from merge.stream import Work

DTYPE_NAMES = {
    "float16": "F16",
    "fp16": "F16",
    "bfloat16": "BF16",
    "bf16": "BF16",
    "float32": "F32",
    "fp32": "F32",
}

LOSS_WORTH_A_WARNING = 0.2
"""Share of the last delta: at 0.2 an fp16 chain still behaves, beyond it the round fades."""


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
) -> MergeReport:
    """Writes base + Σ strength · alpha / rank · up · down to `out`, in the layout of the base.

    The sum is in float32 from the base (float64 for a float64 weight), in the order given, with one
    cast at the end; constant memory; the same bytes each time. Key order, tensors that are not
    touched, zero-element markers and metadata are the base's. A strength of 0 changes no tensor.

    Args:
        base: single file with SD 1.5 keys, or a diffusers folder; `out` becomes the same kind.
        dtype: "float16", "bfloat16" or "float32" for all model weights; None keeps each one's own.
        metadata: added to the output's, over what is there.
        on_tensor: called with (tensors done, tensors in all).
        identities: BLAKE3 hashes that the caller remembers, by path; others are computed.
        allow_unmatched: leave out, and report, LoRA modules that the base has no weight for.

    Raises:
        MergeError: with `exit_code` 2 (wrong input), 3 (disk full) or 1; `out` is as it was.
    """
    target = _target(dtype)
    for addend in addends:
        if not math.isfinite(addend.strength):
            raise MergeError(f"The strength of {addend.path} is {addend.strength}: not a number.")
    parts = look(base)
    _refuse_overwriting(base, [addend.path for addend in addends], out)
    with ExitStack() as stack:
        files = stack.enter_context(open_loras([addend.path for addend in addends]))
        uses, unmatched = match(base, parts, addends, files, allow_unmatched)
        hashes = [identity(addend.path, identities) for addend in addends]
        base_hash = identity(base, identities)
        plans = [
            _planned(part, target, base_hash, list(zip(hashes, addends, strict=True)), metadata)
            for part in parts
        ]
        work = Work(parts, plans, uses, len(addends) - 1, on_tensor)
        stack.enter_context(exact_products())
        # A folder's other files are small beside its weights, which is all that is counted here.
        with replacing(out, sum(p.size for p in plans), base.is_dir()) as temporary:
            if base.is_dir():
                _write_folder(base, temporary, work)
            else:
                work.write(0, temporary)
    return _report(out, base_hash, hashes, work, unmatched)


def _target(dtype: str | None) -> str | None:
    if dtype is None:
        return None
    if dtype not in DTYPE_NAMES:
        raise MergeError(f"dtype {dtype!r} is not one of {', '.join(DTYPE_NAMES)}.")
    return DTYPE_NAMES[dtype]


def _refuse_overwriting(base: Path, loras: list[Path], out: Path) -> None:
    place = out.resolve()
    for source in (path.resolve() for path in (base, *loras)):
        if place == source or source in place.parents or place in source.parents:
            raise MergeError(f"The output {out} would overwrite its input {source}. Name another.")


def _planned(
    part: Part,
    target: str | None,
    base: str,
    addends: Sequence[tuple[str, Addend]],
    extra: Mapping[str, str] | None,
) -> Planned:
    entries = []
    for entry in part.header.entries.values():
        if target is not None and entry.name in part.weights and entry.dtype in DTYPES:
            size = entry.size * 8 // BITS[entry.dtype] * BITS[target] // 8
            entry = replace(entry, dtype=target, begin=0, end=size)
        entries.append(entry)
    described = merged_metadata(
        part.header.metadata, base, addends, part.header.entries, extra or {}
    )
    return plan(entries, described, keep_places=target is None)


def _write_folder(base: Path, temporary: Path, work: Work) -> None:
    """A copy of a pipeline's folder with the merged weight files in the place of the old.

    Other forms of the rewritten weights (.bin, fp16 variants), and weights in the folder's root,
    are left out: a loader that preferred them would show the unmerged model.
    """
    places = {part.place for part in work.parts}
    rewritten = {Path(place).parent for place in places} | {Path()}
    folders = {temporary}
    for folder, _, names in os.walk(base, followlinks=True):
        inside = Path(folder).relative_to(base)
        (temporary / inside).mkdir(parents=True, exist_ok=True)
        folders.add(temporary / inside)
        for name in sorted(names):
            if not (inside in rewritten and name.endswith((*WEIGHTS, ".index.json"))):
                copy_file(base / inside / name, temporary / inside / name)
    for number, part in enumerate(work.parts):
        work.write(number, temporary / part.place)
    for written in folders:
        sync_folder(written)


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
