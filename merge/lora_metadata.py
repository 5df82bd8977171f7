"""What a LoRA that was made from others says of itself: its ranks, and how it came to be.

No clock and no file names, as merge/lineage.py. `ss_…` are sd-scripts' fields, which other programs
show and read; what the source said there is kept, but for what is no longer true.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from merge.families import family_of_lora
from merge.layers import Family
from merge.lineage import LINEAGE, STALE
from merge.lora import LoraFile
from merge.thin import Cut

DYNAMIC = "Dynamic"
"""sd-scripts' word where layers have ranks of their own."""

TOLD = ("modelspec.architecture", "ss_base_model_version")
FAMILIES: Mapping[str, Family] = {
    "stable-diffusion-xl": "sdxl",
    "stable-diffusion-v1": "sd15",
    "sdxl_": "sdxl",
    "sd_v1": "sd15",
}
"""What values of TOLD begin with."""


@dataclass(frozen=True)
class Written:
    """A module of the file described. spatial: a convolution of a kernel larger than 1 × 1."""

    rank: int
    alpha: float
    spatial: bool


def source(blake3: str, metadata: Mapping[str, str]) -> dict[str, Any]:
    """A LoRA or checkpoint that went in, with the lineage that it has itself."""
    found: dict[str, Any] = {"blake3": blake3}
    if LINEAGE in metadata:
        try:
            found["lineage"] = json.loads(metadata[LINEAGE])
        except ValueError:
            found["lineage"] = metadata[LINEAGE]
    return found


def family_of(file: LoraFile) -> Family | None:
    """The family that a LoRA's names and sizes tell, or else its metadata; None where none does.

    Raises:
        MergeError: they tell of another model.
    """
    found = family_of_lora(file)
    if found is not None:
        return found
    for key, family in FAMILIES.items():
        if any(file.metadata.get(name, "").startswith(key) for name in TOLD):
            return family
    return None


def said(cut: Cut, conv_rank: int | None) -> dict[str, float]:
    """What was asked for, without what was not."""
    asked = {
        "rank": cut.rank,
        "energy": cut.energy,
        "ratio": cut.ratio,
        "conv_rank": conv_rank,
    }
    return {key: value for key, value in asked.items() if value is not None}


def lora_metadata(
    original: Mapping[str, str],
    modules: Sequence[Written],
    lineage: Mapping[str, Any],
    architecture: str | None,
    extra: Mapping[str, str],
) -> dict[str, str]:
    """The original's metadata with ranks, modelspec and lineage of ours, then the caller's.

    architecture: modelspec's, such as "stable-diffusion-v1/lora", where the original has none;
    None where it is not known.
    """
    kept = {key: value for key, value in original.items() if key not in (*STALE, LINEAGE)}
    # 3x3 convolutions have a rank of their own, unless there is nothing else.
    spatial = [module for module in modules if module.spatial]
    others = [module for module in modules if not module.spatial] or modules
    ours = {
        "modelspec.sai_model_spec": kept.get("modelspec.sai_model_spec", "1.0.0"),
        "ss_network_dim": _one(module.rank for module in others),
        "ss_network_alpha": _one(module.alpha for module in others),
        "ss_network_module": kept.get("ss_network_module", "networks.lora"),
        LINEAGE: json.dumps(lineage, sort_keys=True, separators=(",", ":")),
    }
    if architecture is not None:
        ours["modelspec.architecture"] = kept.get("modelspec.architecture", architecture)
    if spatial and others is not modules:
        arguments = _arguments(kept.get("ss_network_args", "")) | {
            "conv_dim": _one(module.rank for module in spatial),
            "conv_alpha": _one(module.alpha for module in spatial),
        }
        ours["ss_network_args"] = json.dumps(arguments)
    return {**kept, **dict(sorted(ours.items())), **extra}


def _one(numbers: Iterable[float]) -> str:
    found = set(numbers)
    return f"{found.pop():g}" if len(found) == 1 else DYNAMIC


def _arguments(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
