"""A base into its family, told by the names in a single file or by a folder's model_index.json."""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from pipeline.errors import RequestError
from pipeline.models.components import NAMES, TEXT, UNET, Component, Family, components_of
from pipeline.models.header import Header, read_header
from pipeline.models.layout import is_folder, read_configuration
from pipeline.recipe.base import Base

LORA_MARKS = (
    *(".lora_down.weight", ".lora_up.weight", ".lora.down.weight", ".lora.up.weight"),
    *(".lora_A.weight", ".lora_B.weight", ".hada_w1_a", ".lokr_w1", ".lokr_w1_a"),
)
"""How the names of an adapter's tensors end, by the trainers' various spellings."""

SDXL_MARKS = ("conditioner.embedders.", f"{UNET.prefix}label_emb.")
FIRST_CONVOLUTION = "model.diffusion_model.input_blocks.0.0.weight"
LATENT_CHANNELS = 4


def family_of(base: Base) -> Family:
    """Which family `base` is of.

    Raises:
        RequestError: it is missing, or none that is known; says what it is, or what it lacks.
    """
    if not base.checkpoint.exists():
        raise RequestError(
            f"There is no checkpoint {base.checkpoint} ([base].checkpoint). "
            "Name a .safetensors file or a diffusers folder."
        )
    if not is_folder(base):
        return family_of_file(read_header(base.checkpoint))
    index = base.checkpoint / "model_index.json"
    if not index.is_file():
        raise RequestError(
            f"{base.checkpoint} ([base].checkpoint) is a folder without model_index.json, so not "
            "a diffusers pipeline. Name the folder that save_pretrained wrote, or a .safetensors "
            "file."
        )
    return _family_of_folder(base.checkpoint, read_configuration(index))


@lru_cache(maxsize=16)
def family_of_file(header: Header) -> Family:
    """Which family a single file's tensors make it. Raises as `family_of` does."""
    names = header.tensors
    if any(name.endswith(LORA_MARKS) for name in names):
        raise RequestError(
            f"{header.path} is a LoRA, not a checkpoint. Name the checkpoint that it was made for."
        )
    family: Family = "sdxl" if any(name.startswith(SDXL_MARKS) for name in names) else "sd15"
    missing = [c for c in components_of(family) if not _holds(header, c)]
    if missing:
        raise RequestError(
            _lacks(header, family, [f"the {c.title} ({c.prefix}*)" for c in missing])
        )
    first = names.get(FIRST_CONVOLUTION)
    if first is None or len(first.shape) != 4:
        raise RequestError(_lacks(header, family, [FIRST_CONVOLUTION]))
    if first.shape[1] != LATENT_CHANNELS:
        raise RequestError(_other_channels(header.path, first.shape[1]))
    openclip = not any(name.startswith(f"{TEXT.prefix}transformer.") for name in names)
    return "sd2" if family == "sd15" and openclip else family


def _holds(header: Header, component: Component) -> bool:
    # SD 2's encoder lies under SD 1's prefix in another layout: the family is told by it.
    parts = ("",) if component is TEXT else component.parts
    prefixes = tuple(component.prefix + part for part in parts)
    return any(name.startswith(prefixes) for name in header.tensors)


def _lacks(header: Header, family: Family, missing: list[str]) -> str:
    names = header.tensors
    if not names:
        return f"{header.path} holds no tensors. Download or copy it again."
    hint = "Name a whole checkpoint, as one downloads it for a drawing program."
    if any(name.startswith(("down_blocks.", "encoder.down_blocks.")) for name in names):
        hint = "It is one component of a diffusers folder: name the folder with model_index.json."
    return (
        f"{header.path} is not a whole {NAMES[family]} checkpoint: it lacks {', '.join(missing)}; "
        f"its first tensor is {next(iter(names))}. {hint}"
    )


def _other_channels(path: Path, channels: object) -> str:
    return (
        f"{path} takes {channels} input channels: a model for inpainting or editing. "
        f"Name one that draws from text alone ({LATENT_CHANNELS} channels)."
    )


def _family_of_folder(folder: Path, pipeline: Mapping[str, object]) -> Family:
    two = "text_encoder_2" in pipeline or "XL" in str(pipeline.get("_class_name"))
    family: Family = "sdxl" if two else "sd15"
    missing = [c.folder for c in components_of(family) if _absent(pipeline.get(c.folder))]
    if missing:
        raise RequestError(
            f"{folder} holds a {pipeline.get('_class_name')}, not a Stable Diffusion pipeline: its "
            f"model_index.json lacks {', '.join(missing)}."
        )
    unet = read_configuration(folder / UNET.folder / "config.json")
    if unet.get("in_channels", LATENT_CHANNELS) != LATENT_CHANNELS:
        raise RequestError(_other_channels(folder, unet["in_channels"]))
    # SD 2's folder differs from SD 1's only in sizes; its OpenCLIP encoder has 1024 features.
    return "sd2" if family == "sd15" and unet.get("cross_attention_dim") == 1024 else family


def _absent(entry: object) -> bool:
    """The refiner's index names its missing first encoder as [null, null]."""
    return not isinstance(entry, list) or not all(entry)
