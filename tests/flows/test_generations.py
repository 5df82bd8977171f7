from collections.abc import Callable
from pathlib import Path

import pytest

from flows.generations import begin, begun_with, newest, next_generation, number_of
from pipeline.artefacts.chain import download_fingerprint
from pipeline.artefacts.job import Job, load_job
from pipeline.artefacts.receipts import write_receipt
from pipeline.errors import UrushiError

WriteRecipe = Callable[..., Path]
ROUNDS = "[rounds]\ncount = 3\nlearning_rate = 1e-4\ndecay = 0.5\nepochs = [6, 4]\n"


@pytest.fixture
def job(write_recipe: WriteRecipe, tmp_path: Path) -> Job:
    return load_job(write_recipe(ROUNDS), tmp_path / "workspace")


def with_pictures(job: Job, count: int) -> None:
    dataset = job.datasets[0][1]
    folder = job.dataset_folder(dataset).images
    write_receipt(
        folder,
        "download",
        download_fingerprint(dataset),
        inputs={},
        outputs=[],
        summary={"images": count},
        seconds=0.0,
    )


def test_a_generation_starts_from_the_final_one_before_and_at_its_rate(job: Job) -> None:
    with pytest.raises(UrushiError, match="urushi rebuild coat"):
        next_generation(job, job, 1)
    job.folder.root.mkdir(parents=True)
    job.folder.final.write_bytes(b"weights")
    assert newest(job) is job
    second = next_generation(job, job, 2)
    assert second.recipe.name == "coat-2"
    assert second.recipe.base.checkpoint == job.folder.final
    # 1e-4, 5e-5, 2.5e-5 were the first build's; the next two go on from there.
    assert [law.learning_rate for law in second.recipe.law()] == pytest.approx([2.5e-5, 1.25e-5])
    assert second.datasets == job.datasets
    assert second.recipe.lora == job.recipe.lora
    assert (number_of(job), number_of(second)) == (1, 2)
    assert newest(job).recipe == second.recipe
    second.folder.root.mkdir(parents=True)
    second.folder.final.write_bytes(b"weights")
    third = next_generation(job, newest(job), 1)
    assert third.recipe.name == "coat-3"
    assert newest(job).recipe.name == "coat-3"


def test_what_a_generation_began_with_is_remembered_once(job: Job) -> None:
    job.folder.root.mkdir(parents=True)
    with_pictures(job, 100)
    assert begun_with(job) == 100, "a build of before: it had what is there now"
    begin(job)
    with_pictures(job, 700)
    begin(job)
    assert begun_with(job) == 100
