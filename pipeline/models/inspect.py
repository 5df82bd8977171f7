"""A base into facts about it, read from headers and configurations alone: no weights, no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.errors import RequestError
from pipeline.models.header import Header, read_header
from pipeline.models.layout import (
    COMPONENTS,
    SCHEDULER_FILE,
    TEXT,
    UNET,
    configurations,
    is_folder,
    read_configuration,
    weights_of,
)
from pipeline.recipe.base import Base

Family = Literal["sd15", "sd2", "sdxl"]
Layout = Literal["single-file", "diffusers"]
PredictionType = Literal["epsilon", "v_prediction"]

V_MARKER = "v_pred"
ZERO_SNR_MARKER = "ztsnr"
"""Tensors without elements by which ComfyUI, A1111 and reForge, too, tell what a file predicts."""

LORA_MARKS = (
    *(".lora_down.weight", ".lora_up.weight", ".lora.down.weight", ".lora.up.weight"),
    *(".lora_A.weight", ".lora_B.weight", ".hada_w1_a", ".lokr_w1", ".lokr_w1_a"),
)
"""How the names of an adapter's tensors end, by the trainers' various spellings."""

SPELLINGS: Mapping[str, PredictionType] = {
    "epsilon": "epsilon",
    "eps": "epsilon",
    "v": "v_prediction",
    "v_prediction": "v_prediction",
    "v-prediction": "v_prediction",
}
SDXL_MARKS = ("conditioner.embedders.", f"{UNET.prefix}label_emb.")
FIRST_CONVOLUTION = "model.diffusion_model.input_blocks.0.0.weight"
LATENT_CHANNELS = 4


@dataclass(frozen=True)
class BaseFacts:
    """What a checkpoint is. `tensors` counts them, `bytes` is the size of the weights on disk."""

    family: Family
    layout: Layout
    prediction_type: PredictionType
    zero_terminal_snr: bool
    tensors: int
    bytes: int
    path: Path


def inspect(base: Base) -> BaseFacts:
    """The facts about `base`.

    Prediction type: the markers of a single file, else its modelspec metadata, else the scheduler's
    configuration, else epsilon.

    Raises:
        RequestError: the checkpoint is missing, cut short, a LoRA or no Stable Diffusion
            checkpoint, or its configurations are not there.
    """
    if not base.checkpoint.exists():
        raise RequestError(
            f"There is no checkpoint {base.checkpoint} ([base].checkpoint). "
            "Name a .safetensors file or a diffusers folder."
        )
    if is_folder(base):
        return _inspect_folder(base)
    folder = configurations(base)
    header = read_header(base.checkpoint)
    family = family_of(header)
    schedule = _schedule(folder)
    names = header.tensors
    if V_MARKER in names or ZERO_SNR_MARKER in names:
        # A file that marks itself marks both facts; the configuration beside it may be another's.
        prediction = SPELLINGS["v"] if V_MARKER in names else _stated(header, schedule)
        zero_snr = ZERO_SNR_MARKER in names
    else:
        prediction = _stated(header, schedule)
        zero_snr = bool(schedule.get("rescale_betas_zero_snr", False))
    return BaseFacts(
        family=family,
        layout="single-file",
        prediction_type=prediction,
        zero_terminal_snr=zero_snr,
        tensors=len(names),
        bytes=header.bytes,
        path=base.checkpoint,
    )


def require_supported(facts: BaseFacts) -> None:
    """Raises RequestError, saying what it is, for a family that this version cannot train."""
    refusals: Mapping[str, str] = {
        "sdxl": "an SDXL checkpoint (two text encoders)",
        "sd2": "a Stable Diffusion 2 checkpoint (an OpenCLIP text encoder)",
    }
    if facts.family in refusals:
        raise RequestError(
            f"{facts.path} is {refusals[facts.family]}, which this version cannot train yet. "
            "Set [base].checkpoint to one of Stable Diffusion 1.5's shape."
        )


def family_of(header: Header) -> Family:
    """Which family a single file's tensors make it.

    Raises:
        RequestError: none that is known; says what it is instead, or what it lacks.
    """
    names = header.tensors
    if any(name.endswith(LORA_MARKS) for name in names):
        raise RequestError(
            f"{header.path} is a LoRA, not a checkpoint. Name the checkpoint that it was made for."
        )
    if any(name.startswith(SDXL_MARKS) for name in names):
        return "sdxl"
    missing = [c for c in COMPONENTS if not any(name.startswith(c.prefix) for name in names)]
    if missing:
        raise RequestError(_lacks(header, [f"the {c.title} ({c.prefix}*)" for c in missing]))
    first = names.get(FIRST_CONVOLUTION)
    if first is None or len(first.shape) != 4:
        raise RequestError(_lacks(header, [FIRST_CONVOLUTION]))
    if first.shape[1] != LATENT_CHANNELS:
        raise RequestError(
            f"{header.path} takes {first.shape[1]} input channels: a model for inpainting or "
            f"editing. Name one that draws from text alone ({LATENT_CHANNELS} channels)."
        )
    if not any(name.startswith(f"{TEXT.prefix}transformer.") for name in names):
        return "sd2"
    return "sd15"


def _lacks(header: Header, missing: list[str]) -> str:
    names = header.tensors
    if not names:
        return f"{header.path} holds no tensors. Download or copy it again."
    hint = "Name a whole checkpoint, as one downloads it for a drawing program."
    if any(name.startswith(("down_blocks.", "encoder.down_blocks.")) for name in names):
        hint = "It is one component of a diffusers folder: name the folder with model_index.json."
    return (
        f"{header.path} is not a Stable Diffusion checkpoint: it lacks {', '.join(missing)}; "
        f"its first tensor is {next(iter(names))}. {hint}"
    )


def _inspect_folder(base: Base) -> BaseFacts:
    index = base.checkpoint / "model_index.json"
    if not index.is_file():
        raise RequestError(
            f"{base.checkpoint} ([base].checkpoint) is a folder without model_index.json, so not "
            "a diffusers pipeline. Name the folder that save_pretrained wrote, or a .safetensors "
            "file."
        )
    pipeline = read_configuration(index)
    family = _family_of_pipeline(base.checkpoint, pipeline)
    folder = configurations(base)
    files = [f for component in COMPONENTS for f in weights_of(base.checkpoint, component).files]
    headers = [read_header(file) for file in files]
    schedule = _schedule(folder)
    return BaseFacts(
        family=family,
        layout="diffusers",
        prediction_type=_spelled(schedule.get("prediction_type", "epsilon"), base.checkpoint),
        zero_terminal_snr=bool(schedule.get("rescale_betas_zero_snr", False)),
        tensors=sum(len(header.tensors) for header in headers),
        bytes=sum(header.bytes for header in headers),
        path=base.checkpoint,
    )


def _family_of_pipeline(folder: Path, pipeline: Mapping[str, object]) -> Family:
    if "text_encoder_2" in pipeline or "XL" in str(pipeline.get("_class_name")):
        return "sdxl"
    missing = [c.folder for c in COMPONENTS if c.folder not in pipeline]
    if missing:
        raise RequestError(
            f"{folder} holds a {pipeline.get('_class_name')}, not a Stable Diffusion pipeline: its "
            f"model_index.json lacks {', '.join(missing)}."
        )
    unet = read_configuration(folder / UNET.folder / "config.json")
    if unet.get("in_channels", LATENT_CHANNELS) != LATENT_CHANNELS:
        raise RequestError(
            f"{folder} takes {unet['in_channels']} input channels: a model for inpainting or "
            f"editing. Name one that draws from text alone ({LATENT_CHANNELS} channels)."
        )
    # SD 2's folder differs from SD 1's only in sizes; its OpenCLIP encoder has 1024 features.
    return "sd2" if unet.get("cross_attention_dim") == 1024 else "sd15"


def _schedule(folder: Path | None) -> Mapping[str, object]:
    """The scheduler's configuration; the hub's, of SD 1.5 itself, says only what is default."""
    return {} if folder is None else read_configuration(folder / SCHEDULER_FILE)


def _stated(header: Header, schedule: Mapping[str, object]) -> PredictionType:
    stated = header.metadata.get("modelspec.prediction_type")
    return _spelled(stated or schedule.get("prediction_type", "epsilon"), header.path)


def _spelled(stated: object, path: Path) -> PredictionType:
    prediction = SPELLINGS.get(str(stated).lower())
    if prediction is None:
        raise RequestError(
            f"{path} states the prediction type {stated!r}; epsilon and v_prediction are known. "
            "Use a checkpoint of one of these."
        )
    return prediction
