"""[train]: how one round trains."""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.recipe.running import Running
from pipeline.recipe.section import Positive

Beta = Annotated[float, Field(ge=0, lt=1)]


class Train(Running):
    """How one round trains."""

    batch_size: int = Field(1, ge=1)
    optimizer: Literal["adamw", "adamw8bit", "lion", "lion8bit"] = "adamw8bit"
    """8-bit ones are bitsandbytes'."""
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    weight_decay: float = Field(0.01, ge=0)
    scheduler: Literal["constant", "constant_with_warmup", "cosine", "linear"] = (
        "constant_with_warmup"
    )
    """The learning rate inside a round; diffusers' schedules."""
    warmup: float = Field(0.05, ge=0, lt=1)
    """Share of a round's steps over which the rate rises."""
    max_grad_norm: Positive = 1.0
    caption_dropout: float = Field(0.05, ge=0, lt=1)
    """Share of samples trained with the empty caption, which guidance needs."""
    precision: Literal["auto", "fp16", "float32"] = "auto"
    """fp16 is autocast with float32 LoRA weights; auto takes it on a GPU. bf16 is not offered: it
    rounds the base at every product and so hides what late rounds add."""
    accumulation: int = Field(1, ge=1)
    """Batches whose gradients are added up to one step: a step sees so many times batch_size
    pictures, in the memory that one batch takes."""
    ema_decay: float = Field(0, ge=0, lt=1)
    """The LoRA is the moving average of its factors over the steps, the older ones fading at this
    rate (0.99 to 0.999 for rounds of thousands of steps); 0: the factors after the last step."""
