"""What a merged file says of itself: the base's metadata, modelspec fields, hashes and strengths.

No clock and no file names: the same inputs give the same bytes wherever and whenever it runs.
modelspec: github.com/Stability-AI/ModelSpec. Hashes are BLAKE3.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from merge import strength
from merge.container import Entry
from merge.layers import Family
from merge.records import Addend

LINEAGE = "urushi.lineage"

STALE = ("modelspec.hash_sha256", "modelspec.date", "sshs_model_hash", "sshs_legacy_hash")
"""True of the base's bytes, or of its day, and not of the merged file's."""

ARCHITECTURES: Mapping[Family, str] = {
    "sd15": "stable-diffusion-v1",
    "sdxl": "stable-diffusion-xl-v1-base",
}
"""As modelspec calls them."""

UNKNOWN = "0" * 64
"""Stands in a header for a hash that is not known before the file has been read."""


def merged_metadata(
    original: Mapping[str, str],
    family: Family,
    base: str,
    addends: Sequence[tuple[str, Addend]],
    entries: Mapping[str, Entry],
    extra: Mapping[str, str],
) -> dict[str, str]:
    """The base's own metadata, then ours, then the caller's, which wins.

    `base` and the first of each pair in `addends` are identities. A lineage that the base itself
    has is kept inside ours, so a checkpoint of checkpoints tells its whole story.
    """
    kept = {key: value for key, value in original.items() if key not in STALE}
    source: dict[str, Any] = {"blake3": base}
    if LINEAGE in kept:
        source["lineage"] = _parsed(kept.pop(LINEAGE))
    ours = {
        "modelspec.architecture": kept.get("modelspec.architecture", ARCHITECTURES[family]),
        "modelspec.implementation": kept.get("modelspec.implementation", "diffusers"),
        "modelspec.merged_from": ", ".join(
            [f"blake3:{base}", *(f"blake3:{identity}" for identity, _ in addends)]
        ),
        "modelspec.sai_model_spec": kept.get("modelspec.sai_model_spec", "1.0.0"),
        "modelspec.title": kept.get("modelspec.title", "merged"),
        LINEAGE: json.dumps(
            {"base": source, "loras": described(addends), "sum": "float32, one cast"},
            sort_keys=True,
            separators=(",", ":"),
        ),
    }
    if "v_pred" in entries:
        ours["modelspec.prediction_type"] = "v"
    return {**kept, **dict(sorted(ours.items())), **extra}


def described(addends: Sequence[tuple[str, Addend]]) -> list[dict[str, Any]]:
    """Identity and strength of each LoRA, in order."""
    return [
        {"blake3": digest, "strength": strength.described(addend.strength)}
        for digest, addend in addends
    ]


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
