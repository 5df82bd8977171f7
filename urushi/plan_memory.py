"""A recipe into the GPU memory that training a round takes: an estimate, before anything runs.

The sum of four parts; decoding, captions and the VAE take less, and at other times.

1. Weights: every parameter of the UNet (counted in the base's header), 2 bytes under fp16, else 4;
   and of the text encoders, where they learn in any round.
2. The LoRA (counted as urushi/lora_size.py does): float32 factors, their gradients, the
   optimizer's state, and one copy more where the factors are averaged.
3. Activations: what the backward pass needs. Of SD 1.5's and SDXL's own UNets with a LoRA on every
   layer, the tensors that autograd keeps were added up by shape (torch's saved-tensor hooks on
   weightless networks): ACTIVATIONS bytes per latent pixel and picture in 16 bits. Attention's
   matrices are left out, as the fused kernels that a GPU uses never hold them. With checkpointing
   autograd keeps the blocks' inputs (35 to 38 kB a latent pixel), and one block at a time is
   computed again. Other widths are scaled by the first layer's; float32 takes twice as much.
4. OTHER for CUDA's own context, its kernels' work space and what allocation leaves between.

Not measured on a GPU: take it as good to about a fifth.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.errors import RequestError
from pipeline.models.components import TEXTS
from pipeline.models.family import family_of
from pipeline.recipe import BuildRecipe
from urushi.lora_size import (
    learning_encoders,
    lora_bytes,
    shapes_of,
    text_lora_bytes,
    unet_shapes,
)
from urushi.table import size

ACTIVATIONS = {"sd15": 267_000, "sdxl": 465_000}
"""Bytes a latent pixel, all layers kept: 1.1 GB a picture of SD 1.5 at 512, 7.6 GB of SDXL at
1024."""
CHECKPOINTED = 60_000
"""The same with checkpointing: what is kept, and the largest block while it is computed again."""
WIDTH = 320
"""Channels of both families' first layer."""
FIRST_LAYERS = ("input_blocks.0.0.weight", "conv_in.weight")
OTHER = 1_000_000_000
FACTOR = 8
"""Pixels a latent pixel's side."""
STATES = {"adamw8bit": 2, "lion8bit": 1, "lion": 4}
"""Bytes of optimizer state a parameter."""
TWO_MOMENTS = 8
"""The same of an optimizer not named there: two float32 moments, as AdamW has."""


@dataclass(frozen=True)
class Memory:
    """Bytes."""

    weights: int
    lora: int
    """With gradients and the optimizer's state."""
    activations: int
    text: int = 0
    """The text encoders' weights, where they are loaded."""
    other: int = OTHER

    @property
    def total(self) -> int:
        return self.weights + self.text + self.lora + self.activations + self.other


def training_memory(recipe: BuildRecipe, *, checkpointing: bool | None = None) -> Memory | None:
    """Of one GPU, for the recipe's largest pictures; None while the base is not there.

    Args:
        checkpointing: asked for in the place of the recipe's gradient_checkpointing.
    """
    try:
        family, shapes = family_of(recipe.base), dict(unet_shapes(recipe.base))
    except RequestError:
        return None
    factors = lora_bytes(recipe.base, recipe.lora)
    if factors is None or family not in ACTIVATIONS:
        return None
    parameters, learns = 0, learning_encoders(recipe)
    if any(learns):
        factors += text_lora_bytes(recipe.base, recipe.lora, learns)
        for encoder in TEXTS[family]:
            parameters += sum(math.prod(shape) for _, shape in shapes_of(recipe.base, encoder))
    train = recipe.train
    bytes_ = 4 if train.precision == "float32" else 2
    kept = train.gradient_checkpointing if checkpointing is None else checkpointing
    side = max(recipe.resize.resolutions) / FACTOR
    width = next((shapes[name][0] for name in FIRST_LAYERS if name in shapes), WIDTH)
    each = (CHECKPOINTED if kept else ACTIVATIONS[family]) * width / WIDTH * bytes_ / 2
    # Where the factors began lies beside them.
    began = 1 if recipe.rounds.start == "pissa" else 0
    state = STATES.get(train.optimizer, TWO_MOMENTS) / 4
    return Memory(
        weights=bytes_ * sum(math.prod(shape) for shape in shapes.values()),
        lora=round(factors * (2 + state + (1 if train.ema_decay else 0) + began)),
        activations=round(each * side * side * train.batch_size),
        text=bytes_ * parameters,
    )


def memory_lines(recipe: BuildRecipe) -> Iterator[str]:
    """The estimate for a person, and what checkpointing would make of it."""
    memory = training_memory(recipe)
    if memory is None:
        yield "unknown without the base"
        return
    train = recipe.train
    text = f"text encoders {size(memory.text)}, " if memory.text else ""
    yield (
        f"about {size(memory.total)} to train with: UNet {size(memory.weights)}, {text}LoRA with "
        f"its optimizer {size(memory.lora)}, pictures {size(memory.activations)} (batches of "
        f"{train.batch_size} at {max(recipe.resize.resolutions)}), {size(memory.other)} beside"
    )
    less = training_memory(recipe, checkpointing=True)
    if not train.gradient_checkpointing and less is not None:
        yield f"about {size(less.total)} with [train].gradient_checkpointing = true"
