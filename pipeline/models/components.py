"""Which networks a family consists of: their folders in a diffusers pipeline and their tensors in a
single file."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Family = Literal["sd15", "sd2", "sdxl"]
NAMES: Mapping[Family, str] = {
    "sd15": "Stable Diffusion",
    "sd2": "Stable Diffusion 2",
    "sdxl": "Stable Diffusion XL",
}


@dataclass(frozen=True)
class Component:
    """One network."""

    folder: str
    """In a diffusers pipeline."""
    prefix: str
    """What its tensors' names begin with in a single file."""
    parts: tuple[str, ...]
    """What follows the prefix in the names that the network consists of; others are by-catch."""
    weights: str
    """Stem of its weights' file in a diffusers folder."""
    title: str


@dataclass(frozen=True)
class TextComponent(Component):
    """A text encoder and the tokenizer that feeds it."""

    tokenizer: str
    """The tokenizer's folder in a diffusers pipeline."""
    openclip: bool
    """Whether a single file holds it in OpenCLIP's layout: a CLIPTextModelWithProjection."""


UNET = Component(
    "unet",
    "model.diffusion_model.",
    ("time_embed.", "label_emb.", "input_blocks.", "middle_block.", "output_blocks.", "out."),
    "diffusion_pytorch_model",
    "UNet",
)
VAE = Component(
    "vae",
    "first_stage_model.",
    ("encoder.", "decoder.", "quant_conv.", "post_quant_conv."),
    "diffusion_pytorch_model",
    "VAE",
)
TEXT = TextComponent(
    "text_encoder",
    "cond_stage_model.",
    ("transformer.",),
    "model",
    "text encoder",
    "tokenizer",
    openclip=False,
)
SDXL_TEXT = TextComponent(
    "text_encoder",
    "conditioner.embedders.0.",
    ("transformer.",),
    "model",
    "first text encoder",
    "tokenizer",
    openclip=False,
)
SDXL_TEXT_2 = TextComponent(
    "text_encoder_2",
    "conditioner.embedders.1.",
    ("model.",),
    "model",
    "second text encoder",
    "tokenizer_2",
    openclip=True,
)

TEXTS: Mapping[Family, tuple[TextComponent, ...]] = {
    "sd15": (TEXT,),
    "sd2": (TEXT,),
    "sdxl": (SDXL_TEXT, SDXL_TEXT_2),
}
"""The text encoders of a family; their hidden states are joined in this order."""


def components_of(family: Family) -> tuple[Component, ...]:
    """Every network of a family."""
    return (UNET, VAE, *TEXTS[family])
