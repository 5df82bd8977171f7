"""Masked loss: by hand-worked numbers, and what a half-masked picture teaches."""

import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from pipeline.artefacts.chain import INDEX_FILE
from pipeline.artefacts.receipts import write_receipt
from pipeline.errors import Interrupted, RequestError
from pipeline.models.shards import MASK
from pipeline.progress import Silent
from pipeline.recipe import BuildRecipe
from pipeline.recipe.train import Train
from pipeline.train.feed import Feed
from pipeline.train.objective import sample_losses
from pipeline.train.plan import RoundTraining
from pipeline.train.product import LORA
from pipeline.train.round import train_round
from pipeline.train.run import Run


def _masked(shards: Path, folder: Path, left: int, right: int) -> Path:
    """The shards' latents with masks of two halves, 0 to 255."""
    shutil.copytree(shards / "latents", folder)
    files = sorted(folder.glob("*.safetensors"))
    for file in files:
        tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
        count, _, height, width = tensors["mean"].shape
        mask = torch.full((count, height, width), left, dtype=torch.uint8)
        mask[:, :, width // 2 :] = right
        save_file({**tensors, MASK: mask}, file)
    write_receipt(folder, "cache", folder.name, inputs={}, outputs=[*files, folder / INDEX_FILE])
    return folder


def _digest(training: RoundTraining) -> str:
    return hashlib.sha256((training.folder / LORA).read_bytes()).hexdigest()


def test_masked_means_by_hand() -> None:
    """Errors 1, 2, 3 and 4 squared are 1, 4, 9 and 16; by 1, 0.5, 0 and 0.25 they sum to 7 of 4."""
    said = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 1, 2, 2)
    mask = torch.tensor([1.0, 0.5, 0.0, 0.25]).view(1, 1, 2, 2)
    assert sample_losses(said, 0 * said, mask).tolist() == [7 / 4]
    both = said.repeat(1, 3, 1, 1)
    assert sample_losses(both, 0 * both, mask).tolist() == [7 / 4]


def test_a_mask_of_ones_is_no_mask(plan: Any, shards: Path, tmp_path: Path) -> None:
    whole = _masked(shards, tmp_path / "whole", 255, 255)
    losses = []
    for name, train in (("plain", {}), ("masked", {"masked_loss": True})):
        recipe, training = plan(name, steps=4, train=train, training={"latents": whole})
        train_round(recipe, training, Silent())
        losses.append(_digest(training))
    assert losses[0] == losses[1]


def test_the_floor_is_what_a_masked_pixel_counts(plan: Any, shards: Path, tmp_path: Path) -> None:
    half = _masked(shards, tmp_path / "half", 255, 51)
    for floor, wanted in ((0.0, 51 / 255), (0.5, 0.5)):
        recipe, training = plan(
            train={"masked_loss": True, "unmasked_weight": floor}, training={"latents": half}
        )
        masks = Feed(recipe, training, 1000).at(0).masks
        assert masks is not None
        assert masks.unique().tolist() == pytest.approx([wanted, 1.0])


@pytest.mark.parametrize("loss", ["l2", "huber", "smooth_l1"])
def test_no_gradient_comes_from_what_is_masked_out(loss: str) -> None:
    from diffusers import DDPMScheduler

    from pipeline.train.weighting import training_losses

    said = torch.randn(2, 4, 2, 4, requires_grad=True)
    mask = torch.ones(2, 1, 2, 4)
    mask[..., 2:] = 0
    steps = torch.tensor([10, 900])
    schedule = DDPMScheduler()
    losses = training_losses(Train(loss=loss), schedule, said, torch.zeros(2, 4, 2, 4), steps, mask)
    losses.sum().backward()
    assert said.grad is not None
    assert bool((said.grad[..., 2:] == 0).all()) and bool((said.grad[..., :2] != 0).all())


def test_resumed_it_ends_in_the_same_bytes(
    plan: Any, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = _masked(shards, tmp_path / "half", 255, 0)
    asked: dict[str, Any] = {
        "steps": 6,
        "train": {"masked_loss": True, "save_every": 2},
        "training": {"latents": half},
    }
    recipe, undisturbed = plan("undisturbed", **asked)
    train_round(recipe, undisturbed, Silent())
    recipe, training = plan("cut", **asked)
    advance = Run.advance

    def cut(run: Run) -> None:
        if run.step == 5:
            raise Interrupted("here")
        advance(run)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "advance", cut)
        with pytest.raises(Interrupted):
            train_round(recipe, training, Silent())
    train_round(recipe, training, Silent())
    assert _digest(training) == _digest(undisturbed)
    recipe, plain = plan("plain", steps=6, training={"latents": half})
    train_round(recipe, plain, Silent())
    assert _digest(plain) != _digest(training)


def test_masks_that_are_missing_are_told(plan: Any) -> None:
    recipe, training = plan(train={"masked_loss": True})
    with pytest.raises(RequestError, match=r'holds no masks.*\[cache\].masks to "alpha"'):
        train_round(recipe, training, Silent())


def test_masked_loss_asks_for_masks_in_the_cache() -> None:
    table: dict[str, Any] = {
        "name": "coat",
        "base": {"checkpoint": "base"},
        "dataset": {"recipe": "set.toml"},
    }
    for keys in ({"train": {"masked_loss": True}}, {"round": [{"train": {"masked_loss": True}}]}):
        with pytest.raises(ValidationError, match=r"masked_loss .* set \[cache\].masks to"):
            BuildRecipe.model_validate({**table, **keys})
        assert BuildRecipe.model_validate({**table, **keys, "cache": {"masks": "alpha"}})
    with pytest.raises(ValidationError, match="does nothing without masked_loss"):
        Train(unmasked_weight=0.1)
