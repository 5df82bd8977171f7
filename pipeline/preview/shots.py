"""[preview]'s prompts and seeds as the list of pictures that every checkpoint is asked for."""

from dataclasses import dataclass

from pipeline.recipe.preview import Preview


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
