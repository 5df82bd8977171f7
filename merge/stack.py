"""Sums several LoRAs into one kohya file of greater rank: downs stacked, ups scaled and joined.

    urushi lora concat LORA… --strength S… --out FILE

Σ s_i · alpha_i / rank_i · up_i · down_i  =  [s_1·c_1·up_1 | s_2·c_2·up_2 | …] · [down_1; down_2; …]

Exact but for the rounding of the scaled ups in float32. alpha = total rank, so loaders scale by 1.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from merge.arithmetic import bytes_of
from merge.container import Entry
from merge.errors import MergeError
from merge.families import NAMES
from merge.identity import identity
from merge.layers import Family, Layer, Network
from merge.lineage import ARCHITECTURES, LINEAGE, STALE
from merge.lora import LoraFile, Module, open_loras
from merge.lora_layout import ADAPTER, SUFFIXES, spelled
from merge.lora_metadata import family_of
from merge.output import plan, replacing, write_tensors
from merge.records import Addend
from merge.spelling import dotted, standard_block
from merge.strength import Strength, described, require_finite

KOHYA = SUFFIXES["kohya"]


@dataclass(frozen=True)
class _Use:
    """One addend's module, and the factor on it."""

    file: LoraFile
    module: Module
    strength: float


def concat(
    addends: Sequence[Addend],
    out: Path,
    *,
    metadata: Mapping[str, str] | None = None,
    identities: Mapping[Path, str] | None = None,
) -> tuple[str, ...]:
    """Writes one LoRA whose delta is the sum of the addends', strengths included, in float32.

    Addends of strength 0 take no rank, except that a module which only they have is kept with a
    delta of 0. What all addends' metadata agree on is kept; lineage and `metadata` are added.
    Files of several layouts are joined layer by layer. Returns the BLAKE3 of each addend.

    Raises:
        MergeError: as `merge.merge`; also for the same module in two shapes, for two families, for
            a form without two factors.
    """
    if not addends:
        raise MergeError("There is no LoRA to sum. Name at least one.")
    for addend in addends:
        require_finite(addend.path, addend.strength)
        if addend.path.resolve() in (out.resolve(), *out.resolve().parents):
            raise MergeError(f"The output {out} would overwrite its input. Name another.")
    with open_loras([addend.path for addend in addends]) as files:
        family = _family(files)
        modules = _joined(files, addends, family)
        hashes = tuple(identity(addend.path, identities) for addend in addends)
        common = _metadata(files, hashes, addends, modules, family)
        entries = {
            entry.name: (entry, uses, part)
            for name, uses in modules.items()
            for part, entry in _entries(name, uses).items()
        }
        planned = plan([entry for entry, _, _ in entries.values()], {**common, **(metadata or {})})

        def content(entry: Entry) -> Iterator[bytearray]:
            _, uses, part = entries[entry.name]
            yield bytes_of(_tensor(uses, part).reshape(entry.shape))

        with torch.no_grad(), replacing(out, planned.size, folder=False) as temporary:
            write_tensors(temporary, planned, content)
    return hashes


def _family(files: Sequence[LoraFile]) -> Family | None:
    found = {family_of(file): file.path for file in files}
    found.pop(None, None)
    if len(found) > 1:
        said = ", ".join(f"{path} of {NAMES[family]}" for family, path in found.items() if family)
        raise MergeError(f"The LoRAs are of two families ({said}): they have no sum.")
    return next(iter(found), None)


def _joined(
    files: Sequence[LoraFile], addends: Sequence[Addend], family: Family | None
) -> dict[str, list[_Use]]:
    """What is summed, by the name in kohya's layout that the output gives it."""
    layers: dict[str, list[_Use]] = {}
    for file, addend in zip(files, addends, strict=True):
        for name, module in file.modules.items():
            file.refuse_unless_thin(module)
            # Two spellings of one layer are one layer.
            layer = dotted(name) or name
            there = layers.setdefault(layer, [])
            if there and there[0].module.shape != module.shape:
                raise MergeError(
                    f"{name} has other sizes in {there[0].file.path} and {file.path}: "
                    "the LoRAs were made for different models."
                )
            there.append(_Use(file, module, _strength(addend, layer, family)))
    return {
        _name(uses[0], family): [use for use in uses if use.strength != 0.0] or uses[:1]
        for uses in layers.values()
    }


def _name(first: _Use, family: Family | None) -> str:
    """kohya's spelling stays as it is; another's is translated into kohya's usual one."""
    name = first.module.name
    if first.file.writer == "kohya":
        return name
    layer = dotted(name)
    if family is None or layer is None:
        raise MergeError(
            f"{name} in {first.file.path} has no name in kohya's layout, in which a sum is "
            "written: its layer or the LoRA's family is not known. Convert it, naming the family."
        )
    return spelled(layer, "kohya", family)


def _strength(addend: Addend, layer: str, family: Family | None) -> float:
    strength = addend.strength
    if not isinstance(strength, Strength):
        return float(strength)
    if None not in (strength.family, family) and strength.family != family:
        raise MergeError(
            f"The block weights for {addend.path} count the blocks of the other family: "
            "give the other family's, or names such as IN04-07=1."
        )
    networks: tuple[Network, ...] = ("unet", "te1", "te2")
    network = next((known for known in networks if layer.startswith(f"{known}.")), None)
    block = standard_block(layer, family or strength.family or "sd15")
    if network is None or block is None:
        raise MergeError(
            f"{layer} in {addend.path} is no layer of Stable Diffusion 1.5 or SDXL as published, "
            "so its block is not known. Give one number as the strength."
        )
    return strength.of(Layer(layer, network, block, (), (), ()))


def _entries(name: str, uses: Sequence[_Use]) -> dict[str, Entry]:
    """By what follows the module's name."""
    out, inner, *kernel = uses[0].module.shape
    rank = sum(_rank(use) for use in uses)
    linear = all(len(use.module.entries["down"].shape) == 2 for use in uses)
    shapes: dict[str, tuple[int, ...]] = {
        KOHYA.alpha: (),
        KOHYA.down: (rank, inner) if linear else (rank, inner, *kernel),
        KOHYA.up: (out, rank) if linear else (out, rank, 1, 1),
    }
    return {
        part: Entry(f"{name}.{part}", "F32", shape, 0, 4 * math.prod(shape))
        for part, shape in shapes.items()
    }


def _rank(use: _Use) -> int:
    return use.module.entries["down"].shape[0]


def _tensor(uses: Sequence[_Use], part: str) -> Tensor:
    if part == KOHYA.alpha:
        return torch.tensor(float(sum(_rank(use) for use in uses)))
    factors = [(use.file.thin(use.module), use.strength) for use in uses]
    if part == KOHYA.down:
        return torch.cat([f.down.float() for f, _ in factors])
    return torch.cat([(f.up * (strength * f.scale)).float() for f, strength in factors], dim=1)


def _metadata(
    files: Sequence[LoraFile],
    hashes: Sequence[str],
    addends: Sequence[Addend],
    modules: Mapping[str, Sequence[_Use]],
    family: Family | None,
) -> dict[str, str]:
    first = files[0].metadata
    common = {
        key: value
        for key, value in first.items()
        if key not in (*STALE, LINEAGE, ADAPTER)
        and all(file.metadata.get(key) == value for file in files)
    }
    rank = max(sum(_rank(use) for use in uses) for uses in modules.values())
    loras = [
        {"blake3": blake3, "strength": described(addend.strength)}
        for blake3, addend in zip(hashes, addends, strict=True)
    ]
    architecture = f"{ARCHITECTURES[family or 'sd15']}/lora"
    ours = {
        "modelspec.architecture": common.get("modelspec.architecture", architecture),
        "modelspec.merged_from": ", ".join(f"blake3:{blake3}" for blake3 in hashes),
        "modelspec.sai_model_spec": common.get("modelspec.sai_model_spec", "1.0.0"),
        "ss_network_alpha": str(rank),
        "ss_network_dim": str(rank),
        "ss_network_module": common.get("ss_network_module", "networks.lora"),
        LINEAGE: json.dumps(
            {"loras": loras, "sum": "concatenated"}, sort_keys=True, separators=(",", ":")
        ),
    }
    return {**common, **dict(sorted(ours.items()))}
