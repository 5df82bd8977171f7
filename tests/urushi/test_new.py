from pathlib import Path

import pytest

from pipeline.errors import RequestError
from pipeline.recipe import load_build, load_dataset
from urushi.new import write_recipes


def test_what_it_writes_loads_and_says_what_the_text_says(tmp_path: Path) -> None:
    dataset, build = write_recipes("my_cats", tmp_path, None)
    assert (build.name, dataset.name) == ("my_cats.toml", "my_cats_pictures.toml")
    recipe = load_build(build)
    assert recipe.dataset.recipe == dataset.resolve()
    assert recipe.base.checkpoint == tmp_path.resolve() / "base.safetensors"
    assert len(recipe.law()) == 4
    pictures = load_dataset(dataset)
    assert pictures.download is not None
    assert (pictures.download.tags, pictures.download.ratings) == ("my_cats", ("general",))
    # The polite rate is the default, and no recipe that we write states another.
    assert pictures.download.requests_per_second == 1.0
    assert "artist" in pictures.caption.drop_categories


def test_pictures_of_ones_own(tmp_path: Path) -> None:
    folder = tmp_path / 'my "best" pictures'
    folder.mkdir()
    dataset, _ = write_recipes("mine", tmp_path, folder)
    recipe = load_dataset(dataset)
    assert recipe.folder is not None and recipe.folder.path == folder
    assert recipe.download is None


def test_refusals(tmp_path: Path) -> None:
    for name in ("My Cats", "../x", "", "-x"):
        with pytest.raises(RequestError, match="cannot be a name"):
            write_recipes(name, tmp_path, None)
    with pytest.raises(RequestError, match="no folder"):
        write_recipes("mine", tmp_path, tmp_path / "none")
    assert list(tmp_path.iterdir()) == []
    dataset, _ = write_recipes("mine", tmp_path, None)
    dataset.write_text("edited")
    with pytest.raises(RequestError, match="is there already"):
        write_recipes("mine", tmp_path, None)
    assert dataset.read_text() == "edited"
