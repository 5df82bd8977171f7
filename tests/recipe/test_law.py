from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import RecipeError
from pipeline.recipe import load_build

WriteRecipe = Callable[..., Path]


def test_the_original_builds_numbers(write_recipe: WriteRecipe) -> None:
    """Five rounds of halved rates, 6 then 4 epochs, strength .7 then .9, worked by hand."""
    recipe = load_build(
        write_recipe(
            "[rounds]\ncount = 5\nlearning_rate = 1e-4\ndecay = 0.5\n"
            "epochs = [6, 4]\nstrength = [0.7, 0.9]\n"
        )
    )
    law = recipe.law()
    assert [r.number for r in law] == [1, 2, 3, 4, 5]
    assert [r.learning_rate for r in law] == pytest.approx([1e-4, 5e-5, 2.5e-5, 1.25e-5, 6.25e-6])
    assert [r.epochs for r in law] == [6, 4, 4, 4, 4]
    assert [r.steps for r in law] == [None] * 5
    assert [r.strength for r in law] == [0.7, 0.9, 0.9, 0.9, 0.9]


def test_steps_replace_epochs_and_auto_is_searched(write_recipe: WriteRecipe) -> None:
    law = load_build(write_recipe("[rounds]\ncount = 3\nsteps = [60, 30]\n")).law()
    assert [(r.epochs, r.steps) for r in law] == [(None, 60), (None, 30), (None, 30)]
    assert [r.strength for r in law] == [None, None, None]


def test_rounds_by_hand_follow_and_inherit_the_law(
    write_recipe: WriteRecipe, tmp_path: Path
) -> None:
    (tmp_path / "more.toml").write_text('name = "more"\n[folder]\npath = "."\n')
    recipe = load_build(
        write_recipe(
            "[rounds]\ncount = 2\nlearning_rate = 8e-4\ndecay = 0.5\nepochs = [3, 2]\n"
            'strength = 1.0\n[[round]]\ndataset = "more.toml"\n[[round]]\nlearning_rate = 1e-6\n'
            'steps = 7\nstrength = "auto"\n'
        )
    )
    third, fourth = recipe.law()[2:]
    assert third.dataset == (tmp_path / "more.toml").resolve()
    assert (third.number, third.epochs, third.steps, third.strength) == (3, 2, None, 1.0)
    assert third.learning_rate == pytest.approx(2e-4)
    assert fourth.dataset == (tmp_path / "pictures.toml").resolve()
    assert (fourth.learning_rate, fourth.epochs, fourth.steps) == (1e-6, None, 7)
    assert fourth.strength is None


def test_steps_by_hand_count_before_epochs_by_hand(write_recipe: WriteRecipe) -> None:
    law = load_build(write_recipe("[rounds]\ncount = 0\n[[round]]\nepochs = 2\nsteps = 9\n")).law()
    assert [(r.number, r.epochs, r.steps) for r in law] == [(1, None, 9)]


@pytest.mark.parametrize(
    ("pictures", "kept"),
    [(20, 4), (80, 4), (90, 4), (110, 6), (400, 20), (50_000, 512)],
)
def test_held_out_counts(write_recipe: WriteRecipe, pictures: int, kept: int) -> None:
    """5 %, rounded half to even, between 4 and 512."""
    assert load_build(write_recipe()).rounds.kept_back(pictures) == kept


@pytest.mark.parametrize(
    ("lora", "linear", "convolution"),
    [
        ("rank = 128\nalpha = 24\nconv_rank = 128\n", 24.0, 24.0),
        ("rank = 16\n", 16.0, 0.0),
        ("rank = 16\nalpha = 8\nconv_rank = 4\n", 8.0, 2.0),
        ("rank = 16\nconv_rank = 4\nconv_alpha = 1\n", 16.0, 1.0),
    ],
)
def test_alphas(write_recipe: WriteRecipe, lora: str, linear: float, convolution: float) -> None:
    """Convolutions get the linear layers' scale alpha / rank unless told otherwise."""
    recipe = load_build(write_recipe(f"[lora]\n{lora}"))
    assert recipe.lora.linear_alpha == linear
    assert recipe.lora.convolution_alpha == convolution


def test_captions_are_live_from_the_first_round_whose_encoders_learn(
    write_recipe: WriteRecipe,
) -> None:
    def lives(lines: str) -> list[bool]:
        recipe = load_build(write_recipe("[rounds]\ncount = 2\n" + lines))
        assert recipe.caches_text is not recipe.law()[0].live
        return [law.live for law in recipe.law()]

    learning = "[[round]]\ntrain = { text_encoder_rate = 0.5 }\n"
    assert lives("") == [False, False]
    assert lives("[train]\ntext_encoder_rate = 0.5\n") == [True, True]
    assert lives("[train]\ntext_encoder_rate = [0.0, 0.5]\n") == [True, True]
    assert lives(learning + "[[round]]\n") == [False, False, True, True]
    still = "[[round]]\ntrain = { text_encoder_rate = 0.0 }\n"
    assert lives("[train]\ntext_encoder_rate = 1.0\n" + still) == [True, True, True]


@pytest.mark.parametrize("wrong", ["-0.1", "[0.5]", "[0.5, 0.5, 0.5]", "nan", '"half"'])
def test_text_encoder_rates_are_one_share_or_two(write_recipe: WriteRecipe, wrong: str) -> None:
    with pytest.raises(RecipeError, match="text_encoder_rate"):
        load_build(write_recipe(f"[train]\ntext_encoder_rate = {wrong}\n"))


def test_a_strength_is_parted_where_encoders_learn(write_recipe: WriteRecipe) -> None:
    parting = "[rounds]\nencoders_apart = true\ncount = 1\n"
    still = "[[round]]\ntrain = { text_encoder_rate = 0.0 }\n"
    recipe = load_build(write_recipe(parting + "[train]\ntext_encoder_rate = 0.5\n" + still))
    assert [law.apart for law in recipe.law()] == [True, False]
    with pytest.raises(RecipeError, match="no round's text encoders learn"):
        load_build(write_recipe(parting))
