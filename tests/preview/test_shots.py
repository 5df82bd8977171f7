from pipeline.preview.shots import Shot, shots
from pipeline.recipe.preview import Preview

PREVIEW = Preview(prompts=("a", "b"), seed=7)


def test_a_prompts_pictures_stand_together_and_seeds_count_through_the_prompts() -> None:
    assert shots(PREVIEW) == (Shot("a", 7), Shot("b", 8))
    three = shots(PREVIEW.model_copy(update={"seeds": 3}))
    assert [shot.prompt for shot in three] == ["a", "a", "a", "b", "b", "b"]
    assert [shot.seed for shot in three] == [7, 9, 11, 8, 10, 12]


def test_more_pictures_a_prompt_leave_the_first_ones_as_they_are() -> None:
    assert set(shots(PREVIEW)) < set(shots(PREVIEW.model_copy(update={"seeds": 4})))
