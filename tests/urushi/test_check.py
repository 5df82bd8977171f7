from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import RequestError
from pipeline.recipe import load_build, load_dataset
from urushi.check import build_warnings, dataset_warnings, print_check

WriteRecipe = Callable[..., Path]
BOORU = 'name = "set"\n[download]\nsite = "danbooru"\ntags = "{tags}"\ncontact = "{contact}"\n'


def of_build(path: Path) -> list[str]:
    return [w for w in build_warnings(load_build(path)) if "[base].config" not in w]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (
            "[resize]\nresolution = 500\n",
            "[resize].resolution 500 is not a multiple of step 64, so no bucket has this side. "
            "Use 448 or 512.",
        ),
        ("[lora]\nconv_rank = 8\n", "[lora].conv_rank 8 trains convolutions too"),
        (
            "[rounds]\ncount = 6\ndecay = 0.5\n",
            "[rounds].decay brings round 6 to 3.1e-06, 3% of round 1's rate",
        ),
        ("[rounds]\nsteps = [9]\nepochs = [2]\n", "[rounds] has epochs and steps; steps count"),
        (
            "[rounds]\ndecay = 1.0\n[[round]]\nsteps = 9\nepochs = 2\n",
            "[[round]] number 1 has epochs and steps",
        ),
        ('[rounds]\ngate = "always"\n', '[rounds].gate "always" merges every round'),
        ("[preview]\nwidth = 520\n", "[preview].width 520 is not a multiple of 64"),
    ],
)
def test_what_a_build_is_warned_of(write_recipe: WriteRecipe, lines: str, said: str) -> None:
    assert of_build(write_recipe()) == []
    warnings = of_build(write_recipe(lines))
    assert len(warnings) == 1 and warnings[0].startswith(said)


def test_a_single_file_without_configurations_needs_the_network(
    write_recipe: WriteRecipe, tmp_path: Path
) -> None:
    (tmp_path / "base.safetensors").write_bytes(b"")
    assert [w[:13] for w in build_warnings(load_build(write_recipe()))] == ["[base].config"]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ('ratings = ["general", "explicit"]\n', "[download].ratings of set takes explicit"),
        ("requests_per_second = 20\n", "[download].requests_per_second of set is 20; Danbooru"),
        ("[caption]\ndrop_categories = []\n", "[caption].drop_categories of set lets artists'"),
        ("[caption]\nquality = []\n", "[caption].quality of set is empty"),
    ],
)
def test_what_a_dataset_is_warned_of(tmp_path: Path, lines: str, said: str) -> None:
    path = tmp_path / "set.toml"
    path.write_text(BOORU.format(tags="cat rating:g score:>=6", contact="me") + lines)
    warnings = list(dataset_warnings(load_dataset(path)))
    assert len(warnings) == 1 and warnings[0].startswith(said)


def test_a_public_site_wants_a_name_and_few_tags_ones_own_does_not(tmp_path: Path) -> None:
    path = tmp_path / "set.toml"
    text = BOORU.format(tags="cat -dog bird rating:g", contact="")
    path.write_text(text)
    contact, tags = dataset_warnings(load_dataset(path))
    assert contact.startswith("[download].contact of set is empty")
    assert "has 3 tags (cat, -dog, bird)" in tags
    path.write_text(text + 'host = "http://127.0.0.1:1"\n')
    assert list(dataset_warnings(load_dataset(path))) == []


def test_what_is_wrong_is_an_error_and_nothing_is_said_before(
    write_recipe: WriteRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe()
    with pytest.raises(RequestError, match="no checkpoint"):
        print_check(recipe, tmp_path)
    (tmp_path / "base.safetensors").write_text("not a checkpoint at all\n" * 9)
    with pytest.raises(RequestError, match="text file"):
        print_check(recipe, tmp_path)
    (tmp_path / "pictures").rmdir()
    with pytest.raises(RequestError, match=r"no folder .*\[folder\]\.path of pictures"):
        print_check(recipe, tmp_path)
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "datasets").exists()


def test_a_dataset_recipe_is_checked_alone(
    write_recipe: WriteRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    print_check(write_recipe().with_name("pictures.toml"), tmp_path)
    assert "dataset pictures\n  nothing to warn of\n" in capsys.readouterr().out
