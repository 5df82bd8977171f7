"""Where a base's configurations and tokenizers lie.

Those of a single-file checkpoint come from `[base].config`, or from the hub's repository of its
family (its cache first).
"""

from collections.abc import Mapping
from pathlib import Path

from pipeline.errors import RequestError
from pipeline.models.components import NAMES, TEXTS, Family, components_of
from pipeline.models.family import family_of
from pipeline.models.layout import is_folder
from pipeline.recipe.base import Base

REPOSITORIES: Mapping[Family, str] = {
    "sd15": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "sd2": "stabilityai/stable-diffusion-2-1",
    "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
}
"""Where diffusers, too, looks for the configurations of a family's single files."""

SCHEDULER_FILE = "scheduler/scheduler_config.json"
VOCABULARIES = (("tokenizer.json",), ("vocab.json", "merges.txt"))
"""Either of these sets of files makes a tokenizer."""


def configurations(base: Base) -> Path | None:
    """The folder on this machine that holds the base's configurations; None: the hub's are meant.

    Raises:
        RequestError: `[base].config`, or the base's own folder, lacks some of them.
    """
    family = family_of(base)
    if is_folder(base):
        if base.config not in (None, base.checkpoint):
            raise RequestError(
                f"[base].config ({base.config}) is for single-file checkpoints; the diffusers "
                f"folder {base.checkpoint} has configurations of its own. Remove that line."
            )
        return _checked(base.checkpoint, "[base].checkpoint", family)
    return None if base.config is None else _checked(base.config, "[base].config", family)


def fetched_configurations(base: Base) -> Path:
    """As `configurations`, with the hub's fetched into its cache where those are meant.

    Raises:
        RequestError: the hub is needed and neither its cache nor the network has the files.
    """
    folder = configurations(base)
    if folder is not None:
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    family = family_of(base)
    repository = REPOSITORIES[family]
    tokenizers = [text.tokenizer for text in TEXTS[family]]
    wanted = [
        *_files_of(family),
        *(f"{t}/*.{kind}" for t in tokenizers for kind in ("json", "txt")),
    ]
    try:
        cached = snapshot_download(repository, allow_patterns=wanted, local_files_only=True)
        return _checked(Path(cached), "the hub's cache", family)
    except (LocalEntryNotFoundError, RequestError):
        pass  # Nothing there, or a part: fetched now.
    try:
        fetched = Path(snapshot_download(repository, allow_patterns=wanted))
        return _checked(fetched, repository, family)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise RequestError(
            f"{base.checkpoint} is a single file, and its configurations ({repository} on the "
            "Hugging Face hub) are neither in the hub's cache nor reachable now. Set "
            "[base].config to a diffusers folder with them, or run once with network."
        ) from error


def _files_of(family: Family) -> list[str]:
    return [
        *(f"{component.folder}/config.json" for component in components_of(family)),
        SCHEDULER_FILE,
    ]


def _checked(folder: Path, key: str, family: Family) -> Path:
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "does not exist"
        raise RequestError(
            f"{folder} ({key}) {found}. It must be a diffusers folder: what save_pretrained writes."
        )
    missing = [name for name in _files_of(family) if not (folder / name).is_file()]
    for place in (folder / text.tokenizer for text in TEXTS[family]):
        if not any(all((place / name).is_file() for name in files) for files in VOCABULARIES):
            missing.append(f"{place.name}/vocab.json and merges.txt, or tokenizer.json")
    if missing:
        raise RequestError(
            f"{folder} ({key}) is not a diffusers folder of {NAMES[family]}: it lacks "
            f"{', '.join(missing)}. Name the folder that save_pretrained wrote."
        )
    return folder
