from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.artefacts.job import load_job
from pipeline.errors import RequestError

WriteRecipe = Callable[..., Path]


def test_a_build_brings_every_dataset_that_it_names(
    write_recipe: WriteRecipe, tmp_path: Path
) -> None:
    (tmp_path / "more.toml").write_text('name = "more"\n[folder]\npath = "."\n')
    more = '[[round]]\ndataset = "more.toml"\n[[round]]\ndataset = "pictures.toml"\n'
    job = load_job(write_recipe(more), tmp_path / "workspace")
    assert [dataset.name for _, dataset in job.datasets] == ["pictures", "more"]
    assert job.dataset_of(job.recipe.law()[4].dataset).name == "more"
    assert job.folder.root == tmp_path / "workspace" / "builds" / "coat"
    assert job.folder.round(3).lora == job.folder.root / "rounds" / "03" / "lora.safetensors"
    images = job.dataset_folder(job.datasets[1][1]).images
    assert images == tmp_path / "workspace" / "datasets" / "more" / "images"


def test_a_dataset_recipe_is_a_job_without_a_build(
    write_recipe: WriteRecipe, tmp_path: Path
) -> None:
    path = write_recipe().with_name("pictures.toml")
    job = load_job(path, tmp_path / "workspace")
    assert job.build is None
    assert [dataset.name for _, dataset in job.datasets] == ["pictures"]
    with pytest.raises(RequestError, match="needs a build recipe"):
        _ = job.recipe


def test_two_datasets_cannot_share_a_folder(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    (tmp_path / "more.toml").write_text('name = "pictures"\n[folder]\npath = "."\n')
    with pytest.raises(RequestError, match=r"Two dataset recipes are named pictures: .*more\.toml"):
        load_job(write_recipe('[[round]]\ndataset = "more.toml"\n'), tmp_path)


def test_a_build_is_no_dataset(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    path = write_recipe('[[round]]\ndataset = "build.toml"\n')
    with pytest.raises(RequestError, match=r"build\.toml is a build recipe"):
        load_job(path, tmp_path)


def test_a_round_over_a_dataset_that_is_not_there_is_named(
    write_recipe: WriteRecipe, tmp_path: Path
) -> None:
    with pytest.raises(
        RequestError, match=r"absent\.toml, which \[\[round\]\] number 1 in .* names"
    ):
        load_job(write_recipe('[[round]]\ndataset = "absent.toml"\n'), tmp_path)
