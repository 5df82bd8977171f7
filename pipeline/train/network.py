"""The networks that a round trains: loaded, cast, and with a fresh LoRA attached."""

import torch
from diffusers import UNet2DConditionModel

from pipeline.errors import RequestError
from pipeline.models.load import load_unet
from pipeline.recipe import BuildRecipe
from pipeline.train.adapter import Target, attach, targets
from pipeline.train.carry import Carried, take_out
from pipeline.train.plan import RoundTraining
from pipeline.train.start import begin


def load_network(
    recipe: BuildRecipe, training: RoundTraining, precision: str, carried: Carried
) -> tuple[UNet2DConditionModel, list[Target]]:
    """The UNet in training mode, and the layers that its LoRA covers.

    Args:
        precision: accelerate's word for what the network is autocast to: "no" or "fp16".
        carried: taken out of the weights and put into the LoRA.
    """
    unet: UNet2DConditionModel = load_unet(recipe.base, training.checkpoint)
    take_out(unet, [target.name for target in targets(unet, recipe.lora)], carried)
    if precision == "fp16":
        unet.to(dtype=torch.float16)
    if recipe.train.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    covered = attach(unet, recipe.lora, training.seed)
    begin(unet, training.start, carried)
    unet.train()
    return unet, covered


def mixed_precision(precision: str) -> str:
    """What accelerate should autocast to: fp16 on a GPU where the recipe leaves it open."""
    if precision == "auto":
        return "fp16" if torch.cuda.is_available() else "no"
    if precision == "fp16" and not torch.cuda.is_available():
        raise RequestError(
            '[train].precision is "fp16", which needs a GPU, and there is none here. '
            'Use "auto" or "float32".'
        )
    return "fp16" if precision == "fp16" else "no"
