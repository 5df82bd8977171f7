"""Samples while a round trains: the pictures that its LoRA draws, and no trace of them in it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import merge
from pipeline.preview.draw import draw
from pipeline.progress import Silent
from pipeline.recipe import BuildRecipe
from pipeline.recipe.preview import Preview
from pipeline.size import Size
from pipeline.train.plan import RoundTraining
from pipeline.train.product import LORA
from pipeline.train.round import train_round
from pipeline.train.sampling import FOLDER, Samples

TrainMaker = Callable[..., tuple[BuildRecipe, RoundTraining]]
PREVIEW = Preview(prompts=("red circle", "two blue square"), seed=3, steps=3, width=16, height=24)


def trained(plan: TrainMaker, name: str, **train: Any) -> RoundTraining:
    recipe, training = plan(name, steps=4, learning_rate=2e-2, train=train)
    train_round(recipe.model_copy(update={"preview": PREVIEW}), training, Silent())
    return training


@pytest.mark.parametrize(
    "form",
    [
        {},
        {"ema_decay": 0.5, "accumulation": 2},
        {"optimizer": "schedulefreeadamw"},
        {"text_encoder_rate": 0.5},
    ],
    ids=("plain", "ema", "schedule-free", "text"),
)
def test_with_samples_and_without_the_lora_has_the_same_bytes(
    plan: TrainMaker, form: dict[str, Any]
) -> None:
    with_samples = trained(plan, "with", sample_every=2, **form)
    without = trained(plan, "without", **form)
    assert (with_samples.folder / LORA).read_bytes() == (without.folder / LORA).read_bytes()
    names = sorted(path.name for path in (with_samples.folder / FOLDER).iterdir())
    assert names == [f"step-{step:06d}-{shot:02d}.png" for step in (2, 4) for shot in (0, 1)]
    assert not (without.folder / FOLDER).exists()
    curves = EventAccumulator(str(with_samples.folder / "curves")).Reload()
    assert {point.step for tag in curves.Tags()["images"] for point in curves.Images(tag)} == {2, 4}


def pixels(picture: Image.Image | Path) -> np.ndarray[Any, Any]:
    opened = Image.open(picture) if isinstance(picture, Path) else picture
    return np.asarray(opened).astype(int)


@pytest.mark.parametrize("form", [{}, {"text_encoder_rate": 0.5}], ids=("plain", "text"))
def test_the_last_samples_are_what_the_merged_lora_draws(
    plan: TrainMaker, tmp_path: Path, form: dict[str, Any]
) -> None:
    training = trained(plan, "drawn", sample_every=4, **form)
    base = plan()[0].base
    merge.merge(base.checkpoint, [merge.Addend(training.folder / LORA, 1.0)], tmp_path / "merged")
    merged, origin = (
        draw(base, checkpoint, PREVIEW, Size(16, 24), Silent(), what="")
        for checkpoint in (tmp_path / "merged", None)
    )
    for shot, (picture, before) in enumerate(zip(merged, origin, strict=True)):
        found = pixels(training.folder / FOLDER / f"step-000004-{shot:02d}.png")
        assert np.abs(found - pixels(picture)).max() <= 2
        assert np.abs(found - pixels(before)).max() > 10


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_too_little_memory_for_samples_ends_no_training(
    plan: TrainMaker, monkeypatch: pytest.MonkeyPatch, error: RuntimeError
) -> None:
    def refuse(*_: Any) -> None:
        raise error

    monkeypatch.setattr(Samples, "_denoised", refuse)
    training = trained(plan, "full", sample_every=1)
    assert (training.folder / LORA).exists() and not (training.folder / FOLDER).exists()
