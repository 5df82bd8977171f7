"""The networks that a round trains and is judged by: loaded, stored, and with LoRAs attached."""

from collections.abc import Sequence
from pathlib import Path

import torch

from pipeline.errors import RequestError
from pipeline.models.load import load_unet
from pipeline.recipe import BuildRecipe
from pipeline.recipe.base import Base
from pipeline.recipe.train import Storage
from pipeline.train.adapter import attach
from pipeline.train.beside import read_beside, stand_beside, taken_back
from pipeline.train.carry import Carried, take_out
from pipeline.train.denoiser import Denoiser
from pipeline.train.plan import Earlier, RoundTraining
from pipeline.train.precision import storage_of
from pipeline.train.start import begin
from pipeline.train.storage import loaded_in, store
from pipeline.train.targets import Target, targets


def load_base(
    base: Base, checkpoint: Path | None, beside: Sequence[Earlier], storage: Storage, mixed: str
) -> Denoiser:
    """The networks of `checkpoint` (None: the origin), frozen, with `beside` beside their weights.

    Args:
        mixed: accelerate's word for what products are autocast to: "no", "fp16" or "bf16".

    Raises:
        RequestError: the base or a LoRA cannot be loaded, or they do not fit.
    """
    network = Denoiser(load_unet(base, checkpoint, loaded_in(storage, mixed)))
    store(network, storage, mixed)
    stand_beside(network, [read_beside(earlier) for earlier in beside])
    return network


def load_network(
    recipe: BuildRecipe, training: RoundTraining, mixed: str, carried: Carried
) -> tuple[Denoiser, list[Target]]:
    """What a round trains, in training mode, and the layers that its LoRA covers.

    Args:
        carried: taken out of the weights and put into the LoRA.
    """
    storage = storage_of(recipe.train, mixed)
    # What is carried is taken out of float32 weights.
    dtype = torch.float32 if carried else loaded_in(storage, mixed)
    network = Denoiser(load_unet(recipe.base, training.checkpoint, dtype))
    covered = targets(network, recipe.lora)
    if not covered:
        raise RequestError("[lora] covers no layer of this base.")
    beside = [read_beside(earlier) for earlier in training.beside]
    if recipe.train.earlier_beside:
        # These weights' grid would swallow it.
        beside += taken_back(carried)
    else:
        take_out(network, [target.name for target in covered], carried)
    store(network, storage, mixed)
    stand_beside(network, beside)
    if recipe.train.gradient_checkpointing:
        network.unet.enable_gradient_checkpointing()
    covered = attach(network, recipe.lora, training.seed)
    begin(network, training.start, carried)
    network.train()
    return network, covered
