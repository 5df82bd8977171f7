"""[preview] as the list of pictures that every checkpoint is asked for, and their size."""

from dataclasses import dataclass

from pipeline.recipe.build import BuildRecipe
from pipeline.recipe.preview import Preview
from pipeline.size import Size

SIDE_STEP = 8
"""Picture sides are multiples of so many pixels, as the UNet's and VAE's halvings ask."""


@dataclass(frozen=True)
class Shot:
    """One picture to draw: the words, and the seed of the noise that it starts from."""

    prompt: str
    seed: int


def shots(preview: Preview) -> tuple[Shot, ...]:
    """Every prompt from every seed: seed, seed + 1, …; a prompt's pictures stand together."""
    return tuple(
        Shot(prompt, (preview.seed + turn) % 2**63)
        for prompt in preview.prompts
        for turn in range(preview.seeds)
    )


def sample_size(recipe: BuildRecipe) -> Size:
    """[preview]'s sides; by default [resize].resolution, down to a multiple of 8."""
    side = max(SIDE_STEP, recipe.resize.resolution // SIDE_STEP * SIDE_STEP)
    return Size(recipe.preview.width or side, recipe.preview.height or side)
