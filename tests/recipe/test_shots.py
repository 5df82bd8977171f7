from pipeline.recipe.preview import Preview
from pipeline.recipe.shots import Shot, shots

PREVIEW = Preview(prompts=("a", "b"), seed=7)


def test_every_prompt_is_drawn_from_every_seed_and_its_pictures_stand_together() -> None:
    assert shots(PREVIEW) == (Shot("a", 7), Shot("b", 7))
    three = shots(PREVIEW.model_copy(update={"seeds": 3}))
    assert [shot.prompt for shot in three] == ["a", "a", "a", "b", "b", "b"]
    assert [shot.seed for shot in three] == [7, 8, 9, 7, 8, 9]
