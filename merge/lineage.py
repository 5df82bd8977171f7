"""What a merged file says of itself: the base's metadata, modelspec fields, hashes and strengths.

No clock and no file names: the same inputs give the same bytes wherever and whenever it runs.
modelspec: github.com/Stability-AI/ModelSpec. Hashes are BLAKE3.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from blake3 import blake3

from merge.container import Entry
from merge.errors import MergeError
from merge.records import Addend

LINEAGE = "urushi.lineage"

STALE = ("modelspec.hash_sha256", "modelspec.date", "sshs_model_hash", "sshs_legacy_hash")
"""True of the base's bytes, or of its day, and not of the merged file's."""

ARCHITECTURE = "stable-diffusion-v1"


def identity(path: Path, known: Mapping[Path, str] | None = None) -> str:
    """BLAKE3 in hexadecimal of a file, or of a folder's files and their names.

    `known`: identities that the caller remembers, by path as given or resolved.
    """
    for name in (path, path.resolve()):
        if known and name in known:
            return known[name]
    if path.is_dir():
        # followlinks: a model cache's folders are links.
        files = sorted(
            Path(folder, name)
            for folder, _, names in os.walk(path, followlinks=True)
            for name in names
        )
        lines = [f"{file.relative_to(path).as_posix()} {_of_file(file)}\n" for file in files]
        return blake3("".join(lines).encode()).hexdigest()
    return _of_file(path)


def _of_file(path: Path) -> str:
    try:
        hasher = blake3(max_threads=blake3.AUTO)
        hasher.update_mmap(path)
    except OSError as error:
        raise MergeError(f"{path} cannot be read: {error.strerror}. Check the path.") from None
    return hasher.hexdigest()


def merged_metadata(
    original: Mapping[str, str],
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
        "modelspec.architecture": kept.get("modelspec.architecture", ARCHITECTURE),
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
        {"blake3": identity, "strength": float(addend.strength)} for identity, addend in addends
    ]


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
