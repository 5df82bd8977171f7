"""[base]: the checkpoint that round 1 starts from."""

from typing import Literal

from pydantic import Field

from pipeline.recipe.section import RecipePath, Section


class Base(Section):
    """The origin: the checkpoint that round 1 starts from, and how its text encoders are read."""

    checkpoint: RecipePath
    """A .safetensors checkpoint of SD 1.5's or SDXL's layout, or a diffusers folder."""
    config: RecipePath | None = None
    """A diffusers folder with the configurations of a single-file checkpoint (no weights needed).
    Without it diffusers takes them from its hub cache, or the hub."""
    clip_skip: int = Field(1, ge=1, le=12)
    """SD 1.5: which layer of the text encoder, counted from its end, captions are read from; 1 is
    the last, 2 what NovelAI's model and its descendants were trained with. SDXL always takes the
    one before the last, and wants 1 here."""
    tokens: Literal[75, 150, 225] = 75
    """Tokens of a caption that are read, in chunks of 75 that are encoded apart and joined."""
