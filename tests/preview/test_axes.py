from pathlib import Path

from pipeline.preview.axes import Cell, Variant, arrange, names
from pipeline.recipe.preview import Preview

A, B = Path("models/a.safetensors"), Path("models/b.safetensors")
ONE, TWO = Path("one.safetensors"), Path("two.safetensors")
PREVIEW = Preview(prompts=("red", "blue"), seed=7, seeds=2)


def test_without_a_choice_models_stand_side_by_side_over_prompts_and_seeds() -> None:
    grid = arrange([A, B], [], (1.0,), PREVIEW)
    assert grid.columns == ("a", "b")
    assert grid.rows == ("red\nseed 7", "red\nseed 8", "blue\nseed 7", "blue\nseed 8")
    assert grid.cells[1] == tuple(Cell(Variant(B), shot) for shot in range(4))
    with_loras = arrange([A], [ONE, TWO], (0.5, 1.0), PREVIEW)
    assert with_loras.columns == (
        *("one\nstrength 0.5", "one\nstrength 1"),
        *("two\nstrength 0.5", "two\nstrength 1"),
    )


def test_any_axis_lies_across_and_any_other_changes_from_row_to_row() -> None:
    single = Preview(prompts=("red", "blue"))
    grid = arrange([A], [ONE, TWO], (0.0, 0.5), single, x="strength", y="lora")
    assert grid.columns == ("strength 0", "strength 0.5")
    assert grid.rows == ("red\none", "red\ntwo", "blue\none", "blue\ntwo")
    assert grid.cells[1][3] == Cell(Variant(A, TWO, 0.5), 1)
    # At strength 0 there is no LoRA, whichever it is: drawn once.
    assert grid.cells[0][0] == grid.cells[0][1] == Cell(Variant(A), 0)
    assert grid.variants == (Variant(A), Variant(A, ONE, 0.5), Variant(A, TWO, 0.5))
    seeds = arrange([A, B], [], (1.0,), PREVIEW, x="seed", y="checkpoint")
    assert seeds.columns == ("seed 7", "seed 8")
    assert seeds.rows == ("red\na", "red\nb", "blue\na", "blue\nb")
    assert seeds.cells[1][2] == Cell(Variant(A), 3)


def test_what_tells_nothing_apart_is_not_said() -> None:
    grid = arrange([A], [ONE], (0.7,), Preview(prompts=("red",)), x="prompt")
    assert (grid.columns, grid.rows) == (("red",), ("a\none\nstrength 0.7\nseed 0",))


def test_files_of_one_name_are_told_apart_by_their_folders() -> None:
    paths = [Path("x/final.safetensors"), Path("y/final.safetensors"), Path("z/other.ckpt")]
    assert names(paths) == ["x/final", "y/final", "other.ckpt"]
