"""Sums several LoRAs into one kohya file of greater rank: downs stacked, ups scaled and joined.

Σ s_i · alpha_i / rank_i · up_i · down_i  =  [s_1·c_1·up_1 | s_2·c_2·up_2 | …] · [down_1; down_2; …]

Exact but for the rounding of the scaled ups in float32. alpha = total rank, so loaders scale by 1.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from merge.arithmetic import bytes_of
from merge.container import Entry
from merge.errors import MergeError
from merge.lineage import ARCHITECTURE, LINEAGE, STALE, described, identity
from merge.lora import ALPHA, DOWN, UP, LoraFile, Module, open_loras
from merge.output import plan, replacing, write_tensors
from merge.records import Addend

_Use = tuple[LoraFile, Module, float]


def concat(
    addends: Sequence[Addend],
    out: Path,
    *,
    metadata: Mapping[str, str] | None = None,
    identities: Mapping[Path, str] | None = None,
) -> None:
    """Writes one LoRA whose delta is the sum of the addends', strengths included, in float32.

    Addends of strength 0 take no rank, except that a module which only they have is kept with a
    delta of 0. What all addends' metadata agree on is kept; lineage and `metadata` are added.

    Raises:
        MergeError: as `merge.merge`; also for the same module in two shapes.
    """
    if not addends:
        raise MergeError("There is no LoRA to sum. Name at least one.")
    for addend in addends:
        if not math.isfinite(addend.strength):
            raise MergeError(f"The strength of {addend.path} is {addend.strength}: not a number.")
        if addend.path.resolve() == out.resolve():
            raise MergeError(f"The output {out} would overwrite its input. Name another.")
    with open_loras([addend.path for addend in addends]) as files:
        modules = _joined(files, addends)
        hashes = [identity(addend.path, identities) for addend in addends]
        common = _metadata(files, list(zip(hashes, addends, strict=True)), modules, metadata or {})
        entries = [entry for name, uses in modules.items() for entry in _entries(name, uses)]
        planned = plan(entries, common)

        def content(entry: Entry) -> Iterator[bytearray]:
            name, _, part = entry.name.partition(".")
            yield bytes_of(_tensor(modules[name], part).reshape(entry.shape))

        with torch.no_grad(), replacing(out, planned.size, folder=False) as temporary:
            write_tensors(temporary, planned, content)


def _joined(files: Sequence[LoraFile], addends: Sequence[Addend]) -> dict[str, list[_Use]]:
    modules: dict[str, list[_Use]] = {}
    for file, addend in zip(files, addends, strict=True):
        for name, module in file.modules.items():
            there = modules.setdefault(name, [])
            if there and there[0][1].shape != module.shape:
                raise MergeError(
                    f"{name} has other sizes in {there[0][0].path} and {file.path}: "
                    "the LoRAs were made for different models."
                )
            there.append((file, module, float(addend.strength)))
    return {
        name: [use for use in uses if use[2] != 0.0] or uses[:1] for name, uses in modules.items()
    }


def _entries(name: str, uses: Sequence[_Use]) -> list[Entry]:
    out, inner, *kernel = uses[0][1].shape
    rank = sum(module.rank for _, module, _ in uses)
    linear = all(len(module.down.shape) == 2 for _, module, _ in uses)
    shapes = {
        ALPHA: (),
        DOWN: (rank, inner) if linear else (rank, inner, *kernel),
        UP: (out, rank) if linear else (out, rank, 1, 1),
    }
    return [
        Entry(f"{name}.{part}", "F32", shape, 0, 4 * math.prod(shape))
        for part, shape in shapes.items()
    ]


def _tensor(uses: Sequence[_Use], part: str) -> Tensor:
    if part == ALPHA:
        return torch.tensor(float(sum(module.rank for _, module, _ in uses)))
    factors = [(file.factors(module), strength) for file, module, strength in uses]
    if part == DOWN:
        return torch.cat([f.down.float() for f, _ in factors])
    return torch.cat([(f.up * (strength * f.scale)).float() for f, strength in factors], dim=1)


def _metadata(
    files: Sequence[LoraFile],
    addends: Sequence[tuple[str, Addend]],
    modules: Mapping[str, Sequence[_Use]],
    extra: Mapping[str, str],
) -> dict[str, str]:
    first = files[0].metadata
    common = {
        key: value
        for key, value in first.items()
        if key not in (*STALE, LINEAGE) and all(file.metadata.get(key) == value for file in files)
    }
    rank = max(sum(module.rank for _, module, _ in uses) for uses in modules.values())
    ours = {
        "modelspec.architecture": common.get("modelspec.architecture", f"{ARCHITECTURE}/lora"),
        "modelspec.merged_from": ", ".join(f"blake3:{identity}" for identity, _ in addends),
        "modelspec.sai_model_spec": common.get("modelspec.sai_model_spec", "1.0.0"),
        "ss_network_alpha": str(rank),
        "ss_network_dim": str(rank),
        "ss_network_module": common.get("ss_network_module", "networks.lora"),
        LINEAGE: json.dumps(
            {"loras": described(addends), "sum": "concatenated"},
            sort_keys=True,
            separators=(",", ":"),
        ),
    }
    return {**common, **dict(sorted(ours.items())), **extra}
