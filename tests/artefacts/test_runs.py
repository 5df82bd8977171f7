import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.artefacts.job import Job, load_job
from pipeline.artefacts.runs import (
    finished,
    products,
    read_run,
    run_fingerprint,
    run_root,
    write_run,
)

WriteRecipe = Callable[..., Path]


@pytest.fixture
def job(write_recipe: WriteRecipe, tmp_path: Path) -> Job:
    (tmp_path / "base.safetensors").write_bytes(b"weights")
    return load_job(write_recipe(), tmp_path / "workspace")


def finish(job: Job) -> Path:
    root = run_root(job)
    for name in ("final.safetensors", "rounds/01/lora.safetensors", "build.json"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    write_run(root, "finished", fingerprint=run_fingerprint(job), files=products(job))
    return root


def test_a_finished_run_is_proved_by_what_it_made(job: Job) -> None:
    root = finish(job)
    record = finished(root, run_fingerprint(job))
    assert record is not None
    assert set(record.files) == {"final.safetensors", "rounds/01/lora.safetensors", "build.json"}
    (root / "final.safetensors").write_text("cut")
    assert finished(root, run_fingerprint(job)) is None
    (root / "final.safetensors").unlink()
    assert finished(root, run_fingerprint(job)) is None


@pytest.mark.parametrize(
    "lines", ["[rounds]\ncount = 5\n", "[preview]\nseed = 9\n", "[lora]\nrank = 4\n"]
)
def test_another_recipe_is_not_finished(job: Job, write_recipe: WriteRecipe, lines: str) -> None:
    root = finish(job)
    other = load_job(write_recipe(lines), job.workspace.root)
    assert finished(root, run_fingerprint(other)) is None


def test_another_base_or_dataset_is_not_finished(
    job: Job, write_recipe: WriteRecipe, tmp_path: Path
) -> None:
    root = finish(job)
    again = load_job(write_recipe(), job.workspace.root)
    assert finished(root, run_fingerprint(again)) is not None
    rules = load_job(write_recipe(dataset="[caption]\nquality = []\n"), job.workspace.root)
    assert finished(root, run_fingerprint(rules)) is None
    base = tmp_path / "base.safetensors"
    base.write_bytes(b"another")
    os.utime(base, ns=(1, 1))
    assert finished(root, run_fingerprint(job)) is None


def test_runs_that_did_not_finish_prove_nothing(job: Job) -> None:
    root, mark = run_root(job), run_fingerprint(job)
    assert read_run(root) is None and finished(root, mark) is None
    write_run(root, "failed", fingerprint=mark, part="cache", error="no room", seconds={"a": 1.234})
    record = read_run(root)
    assert record is not None and finished(root, mark) is None
    assert (record.state, record.part, record.error) == ("failed", "cache", "no room")
    assert (record.seconds, record.pid) == ({"a": 1.23}, os.getpid())
    (root / "last_run.json").write_text("{")
    assert read_run(root) is None


def test_a_dataset_run_is_proved_by_receipts(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    path = write_recipe().with_name("pictures.toml")
    job = load_job(path, tmp_path / "workspace")
    root = run_root(job)
    assert root == tmp_path / "workspace" / "datasets" / "pictures"
    for name in ("images/receipt.json", "images/images.jsonl", "captions/f/receipt.json"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("x")
    assert len(products(job)) == 3


def test_a_tagger_is_asked_for_and_a_silenced_warning_is_not(
    job: Job, write_recipe: WriteRecipe
) -> None:
    root = finish(job)
    recipe = write_recipe()
    recipe.write_text('silence = ["conv-rank"]\n' + recipe.read_text())
    pictures = recipe.with_name("pictures.toml")
    pictures.write_text('silence = ["contact"]\n' + pictures.read_text())
    assert finished(root, run_fingerprint(load_job(recipe, job.workspace.root))) is not None
    pictures.write_text(pictures.read_text() + '[tagger]\nmodel = "someone/tagger"\n')
    tagged = load_job(recipe, job.workspace.root)
    assert finished(root, run_fingerprint(tagged)) is None
    pictures.write_text(pictures.read_text() + "general = 0.5\n")
    stricter = load_job(recipe, job.workspace.root)
    assert run_fingerprint(stricter) != run_fingerprint(tagged)
