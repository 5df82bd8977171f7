"""The networks that a round trains and is judged by: loaded, stored, and with LoRAs attached."""

from collections.abc import Sequence
from pathlib import Path

import torch

from pipeline.errors import RequestError
from pipeline.models.load import load_text, load_unet
from pipeline.models.text import TextStack
from pipeline.recipe import BuildRecipe
from pipeline.recipe.base import Base
from pipeline.recipe.train import Storage, Train
from pipeline.train.adapter import attach
from pipeline.train.beside import read_beside, stand_beside, taken_back
from pipeline.train.carry import Carried, take_out
from pipeline.train.denoiser import Denoiser, encoder_names
from pipeline.train.dropout import add_dropouts
from pipeline.train.initial import go_on_from
from pipeline.train.naming import kohya_names
from pipeline.train.plan import Earlier, RoundTraining
from pipeline.train.precision import storage_of
from pipeline.train.principal import principal
from pipeline.train.start import begin
from pipeline.train.storage import loaded_in, store
from pipeline.train.targets import Target, targets


def load_base(
    base: Base,
    checkpoint: Path | None,
    beside: Sequence[Earlier],
    storage: Storage,
    mixed: str,
    *,
    live: bool = False,
) -> Denoiser:
    """The networks of `checkpoint` (None: the origin), frozen, with `beside` beside their weights.

    Args:
        mixed: accelerate's word for what products are autocast to: "no", "fp16" or "bf16".
        live: with their text encoders, for captions that are not cached.

    Raises:
        RequestError: the base or a LoRA cannot be loaded, or they do not fit.
    """
    text = load_text(base, checkpoint) if live else None
    network = Denoiser(load_unet(base, checkpoint, loaded_in(storage, mixed)), text)
    store(network, storage, mixed)
    stand_beside(network, [read_beside(earlier) for earlier in beside])
    return network


def live_text(recipe: BuildRecipe, training: RoundTraining) -> TextStack | None:
    """The text encoders that a round starts from; None where what they gave is cached."""
    return load_text(recipe.base, training.checkpoint) if training.live else None


def load_network(
    recipe: BuildRecipe,
    training: RoundTraining,
    mixed: str,
    carried: Carried,
    text: TextStack | None = None,
    *,
    resumed: bool = False,
) -> tuple[Denoiser, list[Target]]:
    """What a round trains, in training mode, and the layers that its LoRA covers.

    Args:
        carried: taken out of the weights and put into the LoRA.
        text: of `live_text`.
        resumed: whether a resume point will say where the LoRA began.
    """
    storage = storage_of(recipe.train, mixed)
    # What is carried is taken out of float32 weights.
    dtype = torch.float32 if carried else loaded_in(storage, mixed)
    shares = {} if text is None else encoder_shares(recipe.train, text)
    network = Denoiser(load_unet(recipe.base, training.checkpoint, dtype), text, shares)
    covered = targets(network, recipe.lora)
    if not covered:
        raise RequestError("[lora] covers no layer of this base.")
    carried = within(carried, network, covered)
    looks = training.start.principal and not resumed
    leading = principal(network, covered, training.seed) if looks else {}
    beside = [read_beside(earlier) for earlier in training.beside]
    if recipe.train.earlier_beside:
        # These weights' grid would swallow it.
        beside += taken_back(carried)
    else:
        take_out(network, [target.name for target in covered], carried)
    store(network, storage, mixed)
    stand_beside(network, beside)
    if recipe.train.gradient_checkpointing:
        network.enable_gradient_checkpointing()
    covered = attach(network, recipe.lora, training.seed)
    add_dropouts(network, recipe.lora)
    begin(network, training.start, carried, leading)
    if training.start.init is not None:
        go_on_from(network, training.start.init)
    network.train()
    return network, covered


def within(carried: Carried, network: Denoiser, covered: Sequence[Target]) -> Carried:
    """What of `carried` lies in layers that this round's LoRA covers: a round before may have
    covered text encoders too."""
    names = set(kohya_names(network, [target.name for target in covered]).values())
    return {name: part for name, part in carried.items() if name in names}


def encoder_shares(train: Train, text: TextStack) -> dict[str, float]:
    """The share of the round's rate of each encoder that learns, by kohya's name of it.

    Raises:
        RequestError: the recipe gives two, and the base has one encoder.
    """
    names, shares = encoder_names(text), train.encoder_rates
    if len(names) == 1 and shares[0] != shares[1]:
        raise RequestError(
            f"[train].text_encoder_rate is {list(shares)}, two numbers for SDXL's two text "
            "encoders, and this base has one. Give it one number."
        )
    return {name: share for name, share in zip(names, shares, strict=False) if share > 0}
