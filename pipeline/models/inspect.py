"""A base into facts about it, read from headers and configurations alone: no weights, no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.errors import RequestError
from pipeline.models.components import Family, components_of
from pipeline.models.configurations import SCHEDULER_FILE, configurations
from pipeline.models.family import family_of
from pipeline.models.header import Header, read_header
from pipeline.models.layout import is_folder, read_configuration, weights_of
from pipeline.recipe.base import Base

Layout = Literal["single-file", "diffusers"]
PredictionType = Literal["epsilon", "v_prediction"]

V_MARKER = "v_pred"
ZERO_SNR_MARKER = "ztsnr"
"""Tensors without elements by which ComfyUI, A1111 and reForge, too, tell what a file predicts."""

SPELLINGS: Mapping[str, PredictionType] = {
    "epsilon": "epsilon",
    "eps": "epsilon",
    "v": "v_prediction",
    "v_prediction": "v_prediction",
    "v-prediction": "v_prediction",
}


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
    family = family_of(base)
    if is_folder(base):
        return _inspect_folder(base, family)
    folder = configurations(base)
    header = read_header(base.checkpoint)
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
    if facts.family == "sd2":
        raise RequestError(
            f"{facts.path} is a Stable Diffusion 2 checkpoint (an OpenCLIP text encoder), which "
            "is not supported. Set [base].checkpoint to one of SD 1.5's or SDXL's shape."
        )


def _inspect_folder(base: Base, family: Family) -> BaseFacts:
    folder = configurations(base)
    files = [
        f
        for component in components_of(family)
        for f in weights_of(base.checkpoint, component).files
    ]
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


def _schedule(folder: Path | None) -> Mapping[str, object]:
    """The scheduler's configuration; the hub's, of the models as published, say only what is
    default."""
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
