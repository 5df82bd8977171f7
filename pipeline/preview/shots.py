"""[preview]'s prompts and seeds as the list of pictures that every checkpoint is asked for."""

from dataclasses import dataclass

from pipeline.recipe.preview import Preview


@dataclass(frozen=True)
class Shot:
    """One picture to draw: the words, and the seed of the noise that it starts from."""

    prompt: str
    seed: int


def shots(preview: Preview) -> tuple[Shot, ...]:
    """Every prompt from every one of its seeds; a prompt's pictures stand together.

    Seeds count up from prompt to prompt, as user interfaces count them through a batch, and begin
    again after the last prompt for every prompt's second picture. So more pictures a prompt leave
    those that are drawn already as they are.
    """
    prompts = preview.prompts
    return tuple(
        Shot(prompt, (preview.seed + index + turn * len(prompts)) % 2**63)
        for index, prompt in enumerate(prompts)
        for turn in range(preview.seeds)
    )
