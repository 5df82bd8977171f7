"""Where a base's components lie: prefixes of a single file, folders of a diffusers pipeline.

The files of configurations and the tokenizer of a single-file checkpoint come from `[base].config`,
or from the hub's repository of Stable Diffusion 1.5 (its cache first).
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import RequestError
from pipeline.recipe.base import Base

REPOSITORY = "stable-diffusion-v1-5/stable-diffusion-v1-5"
"""Where diffusers, too, looks for the configurations of an SD 1.5 single file."""


@dataclass(frozen=True)
class Component:
    """One network: its folder in a diffusers pipeline and its tensors in a single file."""

    folder: str
    prefix: str
    """What its tensors' names begin with in a single file."""
    parts: tuple[str, ...]
    """What follows the prefix in the names that the network consists of; others are by-catch."""
    weights: str
    """Stem of its weights' file in a diffusers folder."""
    title: str


UNET = Component(
    "unet",
    "model.diffusion_model.",
    ("time_embed.", "input_blocks.", "middle_block.", "output_blocks.", "out."),
    "diffusion_pytorch_model",
    "UNet",
)
VAE = Component(
    "vae",
    "first_stage_model.",
    ("encoder.", "decoder.", "quant_conv.", "post_quant_conv."),
    "diffusion_pytorch_model",
    "VAE",
)
TEXT = Component("text_encoder", "cond_stage_model.", ("transformer.",), "model", "text encoder")
COMPONENTS = (UNET, VAE, TEXT)

SCHEDULER_FILE = "scheduler/scheduler_config.json"
TOKENIZER = "tokenizer"
CONFIGURATIONS = (*(f"{component.folder}/config.json" for component in COMPONENTS), SCHEDULER_FILE)
VOCABULARIES = (("tokenizer.json",), ("vocab.json", "merges.txt"))
"""Either of these sets of files makes a tokenizer."""


@dataclass(frozen=True)
class Weights:
    """The safetensors files of one component in a diffusers folder, and their variant ("fp16")."""

    files: tuple[Path, ...]
    variant: str | None


def is_folder(base: Base) -> bool:
    """Whether the base is a diffusers folder rather than a single file."""
    return base.checkpoint.is_dir()


def configurations(base: Base) -> Path | None:
    """The folder on this machine that holds the base's configurations; None: the hub's are meant.

    Raises:
        RequestError: `[base].config`, or the base's own folder, lacks some of them.
    """
    if is_folder(base):
        if base.config not in (None, base.checkpoint):
            raise RequestError(
                f"[base].config ({base.config}) is for single-file checkpoints; the diffusers "
                f"folder {base.checkpoint} has configurations of its own. Remove that line."
            )
        return _checked(base.checkpoint, "[base].checkpoint")
    return None if base.config is None else _checked(base.config, "[base].config")


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

    wanted = [*CONFIGURATIONS, f"{TOKENIZER}/*.json", f"{TOKENIZER}/*.txt"]
    try:
        cached = snapshot_download(REPOSITORY, allow_patterns=wanted, local_files_only=True)
        return _checked(Path(cached), "the hub's cache")
    except (LocalEntryNotFoundError, RequestError):
        pass  # Nothing there, or a part: fetched now.
    try:
        return _checked(Path(snapshot_download(REPOSITORY, allow_patterns=wanted)), REPOSITORY)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise RequestError(
            f"{base.checkpoint} is a single file, and its configurations ({REPOSITORY} on the "
            "Hugging Face hub) are neither in the hub's cache nor reachable now. Set "
            "[base].config to a diffusers folder with them, or run once with network."
        ) from error


def _checked(folder: Path, key: str) -> Path:
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "does not exist"
        raise RequestError(
            f"{folder} ({key}) {found}. It must be a diffusers folder: what save_pretrained writes."
        )
    missing = [name for name in CONFIGURATIONS if not (folder / name).is_file()]
    if not any(all((folder / TOKENIZER / f).is_file() for f in files) for files in VOCABULARIES):
        missing.append(f"{TOKENIZER}/vocab.json and merges.txt, or tokenizer.json")
    if missing:
        raise RequestError(
            f"{folder} ({key}) is not a diffusers folder of Stable Diffusion: it lacks "
            f"{', '.join(missing)}. Name the folder that save_pretrained wrote."
        )
    return folder


def read_configuration(path: Path) -> dict[str, Any]:
    """A component's configuration. Raises RequestError where `path` is not a JSON object."""
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RequestError(f"{path} cannot be read as JSON: {error}.") from None
    if not isinstance(table, dict):
        raise RequestError(f"{path} is not a configuration: it holds no JSON object.")
    return table


def weights_of(folder: Path, component: Component) -> Weights:
    """The weights of `component` in a diffusers folder: whole or in shards, full or fp16.

    Raises:
        RequestError: there are none in safetensors, or a shard is missing.
    """
    place = folder / component.folder
    for variant in (None, "fp16"):
        dotted = f".{variant}" if variant else ""
        whole = place / f"{component.weights}{dotted}.safetensors"
        if whole.is_file():
            return Weights((whole,), variant)
        index = place / f"{component.weights}.safetensors.index{dotted}.json"
        if index.is_file():
            names = read_configuration(index).get("weight_map", {}).values()
            files = tuple(place / name for name in sorted(set(names)))
            for file in files:
                if not file.is_file():
                    raise RequestError(f"{file} is missing, which {index} names. Copy it again.")
            if files:
                return Weights(files, variant)
    pickled = any(place.glob("*.bin"))
    remedy = "Convert its pickled .bin file to safetensors." if pickled else "Copy it again."
    raise RequestError(
        f"{place} has no weights of the {component.title} "
        f"({component.weights}.safetensors). {remedy}"
    )
