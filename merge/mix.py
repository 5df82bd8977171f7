"""Mixes checkpoints: sums and differences of models, by block, chained → one checkpoint.

    urushi mix A B --alpha 0.3 --out FILE                          A · 0.7 + B · 0.3
    urushi mix A B --with C --mode difference --alpha 1 --out FILE     A + (B − C)
    urushi mix --recipe FILE.toml --out FILE                       steps: see merge/mix_toml.py

All steps are one pass: each weight is read from the models that it needs, summed in float32, cast
once and written, a block at a time. Everything else is the leading model's, the first one named.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from merge.arithmetic import (
    DTYPES,
    Memory,
    bytes_of,
    dtype_named,
    exact_products,
    finite,
    tensor_of,
)
from merge.container import BITS, Entry, Reader
from merge.errors import MergeError
from merge.identity import identity
from merge.lineage import ARCHITECTURES, LINEAGE, STALE
from merge.lora_metadata import source
from merge.mix_models import Model, look_at_all
from merge.mix_plan import Task, Work, same_places
from merge.mix_recipe import MixRecipe
from merge.mix_sums import evaluate
from merge.output import Content, Span, plan, replacing, write_tensors
from merge.run import refuse_overwriting

BLOCK = 1 << 18
"""Elements at once. The result does not depend on it."""

PIECE = 512 * 1024
"""Bytes at once of what is copied."""


@dataclass(frozen=True)
class MixReport:
    """What a mix did. Deterministic: the same files and recipe give the same report."""

    out: Path
    leading: str
    """The model that gave keys, dtypes, metadata and what is not mixed."""
    models: Mapping[str, str]
    """Name in the recipe → BLAKE3, in hexadecimal."""
    tensors: int
    """Tensors written."""
    mixed: int
    """Of them, sums of two models or more, or of one and a factor."""
    single: Mapping[str, int]
    """Model → how many tensors are its own; a cast to another dtype is possible."""
    missing: Mapping[str, tuple[str, ...]]
    """Model → weights that it should have given and has not; they are the leading model's."""
    left_out: Mapping[str, tuple[str, ...]]
    """Model → its weights that the leading model has no place for."""
    size: int
    """Bytes of the output."""
    warnings: tuple[str, ...]
    """Sentences for a person."""

    def to_json(self) -> dict[str, Any]:
        """All of it, in JSON's types."""
        return {**asdict(self), "out": str(self.out)}


def mix(
    recipe: MixRecipe,
    out: Path,
    *,
    metadata: Mapping[str, str] | None = None,
    on_tensor: Callable[[int, int], None] | None = None,
    identities: Mapping[Path, str] | None = None,
    force: bool = False,
) -> MixReport:
    """Writes what the recipe's last step gives to `out`, in the layout of its leading model.

    Sums are in float32 (float64 where a float64 weight takes part), in the order of the recipe,
    with one cast at the end; constant memory; the same bytes each time. Where a model's factor is 1
    and the others' 0, its bytes are copied.

    Args:
        recipe: single files of one family, SD 1.5 or SDXL; .ckpt files too.
        metadata: added to the output's, over what is there.
        on_tensor: called with (tensors done, tensors in all).
        identities: BLAKE3 hashes that the caller remembers, by path; others are computed.
        force: `out` may be one of the models.

    Raises:
        MergeError: with `exit_code` 2 (wrong input), 3 (disk full) or 1; `out` is as it was.
    """
    target = dtype_named(recipe.dtype)
    models = look_at_all(recipe)
    refuse_overwriting([model.path for model in models.values()], out, force)
    work = Work(recipe, models, target)
    tasks = work.tasks()
    hashes = {name: identity(model.path, identities) for name, model in models.items()}
    start = work.leading.part.header.start
    planned = plan(
        [task.entry for task in tasks],
        _metadata(recipe, models, hashes, work, metadata or {}),
        like=start if same_places(tasks, work.leading) else None,
    )
    by_name = {task.entry.name: task for task in tasks}
    with ExitStack() as stack:
        stack.enter_context(exact_products())
        temporary = stack.enter_context(replacing(out, planned.size, False))
        used = {name for task in tasks for name in task.found}
        readers = {n: stack.enter_context(models[n].part.reader()) for n in models if n in used}
        stream = _Stream(models, readers)
        done = 0

        def content(entry: Entry) -> Iterator[Content]:
            nonlocal done
            yield from stream.content(by_name[entry.name])
            done += 1
            if on_tensor is not None:
                on_tensor(done, len(tasks))

        write_tensors(temporary, planned, content)
    return _report(out, hashes, work, tasks, planned.size)


def _metadata(
    recipe: MixRecipe,
    models: Mapping[str, Model],
    hashes: Mapping[str, str],
    work: Work,
    extra: Mapping[str, str],
) -> dict[str, str]:
    """The leading model's own, then ours, then the caller's. No clock and no file names."""
    original = work.leading.part.header.metadata
    kept = {key: value for key, value in original.items() if key not in (*STALE, LINEAGE)}
    lineage = {
        "models": {n: source(hashes[n], m.part.header.metadata) for n, m in models.items()},
        "mix": recipe.described(),
        "sum": "float32, one cast",
    }
    if recipe.vae is not None:
        lineage["vae"] = recipe.vae
    merged_from = dict.fromkeys(f"blake3:{hashes[name]}" for name in models)
    ours = {
        "modelspec.architecture": kept.get("modelspec.architecture", ARCHITECTURES[work.family]),
        "modelspec.implementation": kept.get("modelspec.implementation", "diffusers"),
        "modelspec.merged_from": ", ".join(merged_from),
        "modelspec.sai_model_spec": kept.get("modelspec.sai_model_spec", "1.0.0"),
        "modelspec.title": kept.get("modelspec.title", "mixed"),
        LINEAGE: json.dumps(lineage, sort_keys=True, separators=(",", ":")),
    }
    if "v_pred" in work.leading.keys:
        ours["modelspec.prediction_type"] = "v"
    return {**kept, **dict(sorted(ours.items())), **extra}


def _report(
    out: Path, hashes: Mapping[str, str], work: Work, tasks: list[Task], size: int
) -> MixReport:
    single = Counter(task.program.result for task in tasks if not task.program.operations)
    return MixReport(
        out=out,
        leading=work.leading.name,
        models=dict(hashes),
        tensors=len(tasks),
        mixed=len(tasks) - single.total(),
        single=dict(single),
        missing={name: tuple(keys) for name, keys in work.missing.items()},
        left_out=work.left_out(),
        size=size,
        warnings=tuple(work.warnings()),
    )


class _Stream:
    """Reads, sums and casts, a block at a time."""

    def __init__(self, models: Mapping[str, Model], readers: Mapping[str, Reader]) -> None:
        self._models, self._readers = models, readers
        self._memory = Memory()

    def content(self, task: Task) -> Iterator[Content]:
        return self._copied(task) if task.copied else self._summed(task)

    def _copied(self, task: Task) -> Iterator[Content]:
        """The bytes of one model, looked at for NaN and copied by the kernel."""
        name, entry = task.program.result, task.source
        model, reader = self._models[name], self._readers[name]
        watched = entry.name in model.part.weights and entry.dtype in DTYPES
        if reader.copyable and not watched:
            yield Span(reader, entry, 0, entry.size)
            return
        for offset in range(0, entry.size, PIECE):
            count = min(PIECE, entry.size - offset)
            view = self._memory.take("piece", count)
            reader.read_into(entry, offset, view)
            if watched and not finite(tensor_of(view, entry.dtype)):
                raise MergeError(_broken(model, entry))
            yield Span(reader, entry, offset, count) if reader.copyable else view

    def _summed(self, task: Task) -> Iterator[Content]:
        dtypes = {entry.dtype for entry in (task.entry, *task.found.values())}
        exact = torch.float64 if "F64" in dtypes else torch.float32
        width = BITS[task.entry.dtype] // 8
        elements = task.entry.size // width
        for first in range(0, elements, BLOCK):
            count = min(BLOCK, elements - first)
            stored = {
                name: self._read(name, entry, first, count) for name, entry in task.found.items()
            }
            numbers = {name: values.to(exact) for name, values in stored.items()}
            result = evaluate(task.program, numbers).to(DTYPES[task.entry.dtype])
            if not finite(result):
                for name, values in stored.items():
                    if not finite(values):
                        raise MergeError(_broken(self._models[name], task.found[name]))
                raise MergeError(
                    f"{task.entry.name} does not fit into {task.entry.dtype} after the mix: it "
                    "became infinite. Lower the factors, or write dtype float32."
                )
            yield bytes_of(result)

    def _read(self, name: str, entry: Entry, first: int, count: int) -> torch.Tensor:
        width = BITS[entry.dtype] // 8
        view = self._memory.take(name, count * width)
        self._readers[name].read_into(entry, first * width, view)
        return tensor_of(view, entry.dtype)


def _broken(model: Model, entry: Entry) -> str:
    return f"{entry.name} in {model.path} holds NaN or infinity: the model is broken. Get it again."
