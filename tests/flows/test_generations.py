from collections.abc import Callable
from pathlib import Path

import pytest

from flows.generations import (
    begin,
    is_done,
    is_over,
    job_of,
    newest,
    next_generation,
    number_of,
)
from pipeline.artefacts.chain import download_fingerprint
from pipeline.artefacts.job import Job, load_job
from pipeline.artefacts.receipts import write_receipt
from pipeline.artefacts.runs import run_fingerprint, run_root, write_run
from pipeline.errors import RequestError, UrushiError

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
    with pytest.raises(RequestError, match="not here yet"):
        begin(job)
    with_pictures(job, 100)
    assert begin(job) == 100
    with_pictures(job, 700)
    assert begin(job) == 100, "and not what is there now"


def test_lists_of_the_first_rounds_go_on_with_their_last_values(
    write_recipe: WriteRecipe, tmp_path: Path
) -> None:
    lists = "[rounds]\ncount = 2\nepochs = [6, 4]\nstrength = [0.5, 0.9]\n"
    first = load_job(write_recipe(lists), tmp_path / "workspace")
    first.folder.root.mkdir(parents=True)
    first.folder.final.write_bytes(b"weights")
    laws = next_generation(first, first, 2).recipe.law()
    assert [(law.epochs, law.strength) for law in laws] == [(4, 0.9), (4, 0.9)]


def test_a_build_that_its_gate_stopped_is_over_once_something_was_merged(job: Job) -> None:
    root = run_root(job)
    root.mkdir(parents=True)
    write_run(root, "stopped by the gate", fingerprint=run_fingerprint(job))
    assert not is_over(job), "nothing stands to lay more rounds on"
    job.folder.final.write_bytes(b"weights")
    assert is_over(job)
    assert not is_done(job)
    write_run(root, "stopped by the gate", fingerprint="of another recipe")
    assert not is_over(job)


def test_what_a_run_works_on_is_told_by_its_parameters(job: Job, tmp_path: Path) -> None:
    words = {"recipe": str(job.recipe_path), "workspace": str(job.workspace.root)}
    found = job_of(words)
    assert found is not None
    assert found.recipe == job.recipe
    job.folder.root.mkdir(parents=True)
    job.folder.final.write_bytes(b"weights")
    next_generation(job, job, 1)
    of_refresh = job_of(words | {"least_new": 500, "rounds": 1})
    assert of_refresh is not None
    assert of_refresh.recipe.name == "coat-2"
    assert job_of({"workspace": str(tmp_path), "builds": []}) is None
    assert job_of(words | {"recipe": str(tmp_path / "gone.toml")}) is None
