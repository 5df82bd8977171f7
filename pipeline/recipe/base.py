"""[base]: the checkpoint that round 1 starts from."""

from pipeline.recipe.section import RecipePath, Section


class Base(Section):
    """The origin: the checkpoint that round 1 starts from."""

    checkpoint: RecipePath
    """A .safetensors checkpoint of SD 1.5's or SDXL's layout, or a diffusers folder."""
    config: RecipePath | None = None
    """A diffusers folder with the configurations of a single-file checkpoint (no weights needed).
    Without it diffusers takes them from its hub cache, or the hub."""
